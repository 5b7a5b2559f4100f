"""Checks of what an engine is constructed with, before any memory is taken."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology, check_homes
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.slab import SlabLayout


def check_paths(topology: Topology, speed: PathSpeed, training: bool) -> None:
    """Raise InvalidInputError unless every replica has a way in, and its gradient a way home."""
    if training and speed.peer <= 0:
        raise InvalidInputError("replica gradients return by the peer path: give a peer group")
    if topology.nodes > 1 and speed.peer <= 0:
        raise InvalidInputError("a host cache serves one node only: give a peer group")
    if speed.peer <= 0 and speed.host <= 0:
        raise InvalidInputError("replicas need a path: give a host cache, a peer group or both")


def check_sizes(
    rank: int,
    topology: Topology,
    layers: Sequence[int],
    num_experts: int,
    home: NDArray[np.int32],
    cache: HostExpertCache | None,
    layout: SlabLayout,
    group: ProcessGroup | None,
) -> None:
    """Raise InvalidInputError when the engine's arguments contradict each other."""
    if not 0 <= rank < topology.ranks:
        raise InvalidInputError(f"rank {rank} is not one of the group's {topology.ranks}")
    if len(set(layers)) != len(layers):
        raise InvalidInputError(f"layers: {list(layers)} names a layer twice")
    check_home_shape(home, len(layers), num_experts, topology)
    if group is not None and (group.size(), group.rank()) != (topology.ranks, rank):
        raise InvalidInputError(
            f"peer group: rank {group.rank()} of {group.size()}, but this is rank {rank} of "
            f"{topology.ranks}"
        )
    if cache is not None and (cache.layers, cache.layout, cache.local_ranks) != (
        tuple(layers),
        layout,
        topology.ranks_per_node,
    ):
        raise InvalidInputError("host cache: made for other layers, another layout or node size")


def check_home_shape(
    home: NDArray[np.int32], layers: int, num_experts: int, topology: Topology
) -> None:
    """Raise InvalidInputError unless ``home [L, E]`` gives every rank the same share."""
    if home.shape != (layers, num_experts):
        raise InvalidInputError(
            f"home: expected [layers, experts] = [{layers}, {num_experts}], got {list(home.shape)}"
        )
    check_homes(home, topology.ranks)
