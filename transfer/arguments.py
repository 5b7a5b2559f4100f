"""Checks of what an engine is constructed with, before any memory is taken."""

import hashlib
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C._distributed_c10d import AllgatherOptions
from torch.distributed import ProcessGroup

from foremoe.errors import ConflictError, InvalidInputError, TransferError
from foremoe.planner.problem import Topology, check_homes
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.slab import SlabLayout


def check_paths(
    topology: Topology, speed: PathSpeed, training: bool, takes_gradients: bool
) -> None:
    """Raise InvalidInputError unless every replica has a way in, and its gradient a way home."""
    if training and not takes_gradients:
        raise InvalidInputError("replica gradients return: give add_gradients, which takes them")
    if training and speed.peer <= 0:
        raise InvalidInputError("replica gradients return by the peer path: give a peer group")
    if topology.nodes > 1 and speed.network <= 0:
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
    check_home_shape(home, (len(layers), num_experts), topology)
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


def check_home_shape(home: NDArray[np.int32], shape: tuple[int, ...], topology: Topology) -> None:
    """Raise InvalidInputError unless ``home [L, E]`` gives every rank the same share."""
    if home.shape != shape:
        raise InvalidInputError(
            f"home: expected [layers, experts] = {list(shape)}, got {list(home.shape)}"
        )
    check_homes(home, topology.ranks)


def check_agreement(arguments: object, group: ProcessGroup, wait_seconds: float) -> None:
    """Compare what every rank must know alike (by its ``repr``); also opens the connections.

    Raises ConflictError when ranks differ, TransferError when one does not answer in time.
    """
    digest = hashlib.blake2b(repr(arguments).encode(), digest_size=16).digest()
    own = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    everyone = [torch.empty_like(own) for _ in range(group.size())]
    options = AllgatherOptions()
    options.timeout = timedelta(seconds=wait_seconds)
    try:
        group.allgather([everyone], [own], options).wait()
    except RuntimeError as error:
        raise TransferError(
            f"transfer engine: a rank of the group did not start within {wait_seconds} s: {error}"
        ) from error
    if differing := [r for r, other in enumerate(everyone) if not torch.equal(other, own)]:
        raise ConflictError(
            f"transfer engine: rank {group.rank()} and ranks {differing} were given different "
            "topologies, layers, layouts, slots, homes, speeds or caches"
        )
