"""Which transports an engine gets: one of a path on the CPU, on CUDA the first that works."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from foremoe.errors import TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.cuda_ipc import CudaIpcTransport, try_group
from foremoe.transfer.cupy_wire import CupyWire, cupy_nccl
from foremoe.transfer.grouped_peer import GroupedPeerTransport, GroupWire
from foremoe.transfer.host import SharedMemoryTransport
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.host_stream import HostStreamTransport
from foremoe.transfer.peer import GlooPeerTransport
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import HomeWeights, PeerTransport
from foremoe.transfer.torch_wire import TorchWire
from foremoe.transfer.transport import HostTransport

T = TypeVar("T")

_log = logging.getLogger("foremoe.transfer")


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """A way that may work here. ``check`` raises TransferError where it cannot; ``build`` is
    collective and may raise TransferError or RuntimeError.
    """

    name: str
    check: Callable[[], object]
    build: Callable[[], T]


def open_host(
    rank: int, cache: HostExpertCache | None, ends: PeerEnds, wait_seconds: float
) -> HostTransport | None:
    """The host path into the pool of ``ends``, if there is a cache."""
    if cache is None:
        return None
    on_cuda = ends.pool.device.type == "cuda"
    kind = HostStreamTransport if on_cuda else SharedMemoryTransport
    return kind(rank, cache, ends.pool, ends.statistics, wait_seconds)


def open_peer(
    rank: int,
    topology: Topology,
    group: ProcessGroup | None,
    device_group: ProcessGroup | None,
    ends: PeerEnds,
    home_weights: HomeWeights,
    host: HostTransport | None,
    wait_seconds: float,
) -> PeerTransport | None:
    """The peer path into the pool of ``ends``, if there is a group with other ranks.

    Collective over ``group``, which is gloo.
    """
    if group is None or topology.ranks == 1:
        return None
    device = ends.pool.device

    def messages() -> PeerTransport:
        wire = _wire(group, device_group, ends) if device.type == "cuda" else None
        if wire is None:
            return GlooPeerTransport(rank, topology, group, ends, home_weights, host, wait_seconds)
        return GroupedPeerTransport(rank, topology, ends, home_weights, host, wire, wait_seconds)

    if device.type != "cuda":
        return messages()
    pull = Candidate(
        CudaIpcTransport.name, lambda: _one_node(topology), lambda: try_group(group, device)
    )
    if first_that_works([pull], group) is None:
        return messages()
    gradients = messages() if ends.pool.training else None
    return CudaIpcTransport(rank, topology, ends, host, group, gradients, wait_seconds)


def first_that_works(candidates: Sequence[Candidate[T]], group: ProcessGroup) -> T | None:
    """Build the first candidate that works on every rank of ``group``; collective.

    Those before it are logged as degraded modes, with a rank's reason.
    """
    for candidate in candidates:
        built, reason = None, ""
        try:
            candidate.check()
        except TransferError as error:
            reason = str(error)
        if reason := _agreed(reason, group):
            _log.warning("degraded: no %s: %s", candidate.name, reason)
            continue
        try:
            built = candidate.build()
        except (TransferError, RuntimeError) as error:
            reason = str(error)
        if not (reason := _agreed(reason, group)):
            return built
        _log.warning("degraded: no %s: %s", candidate.name, reason)
    return None


def _wire(
    group: ProcessGroup, device_group: ProcessGroup | None, ends: PeerEnds
) -> GroupWire | None:
    device = ends.pool.device

    def over_torch() -> GroupWire:
        assert device_group is not None
        return TorchWire(device_group, device)

    def over_cupy() -> GroupWire:
        return CupyWire(group, device)

    def has_group() -> None:
        if device_group is None:
            raise TransferError("the engine was given no NCCL group")

    wire = first_that_works(
        [
            Candidate("NCCL peer through torch", has_group, over_torch),
            Candidate("NCCL peer through CuPy", cupy_nccl, over_cupy),
        ],
        group,
    )
    if wire is None:
        _log.warning("degraded: peer copies pass through host memory and block the trainer")
    return wire


def _one_node(topology: Topology) -> None:
    if topology.nodes > 1:
        raise TransferError(f"the EP group spans {topology.nodes} nodes")


def _agreed(reason: str, group: ProcessGroup) -> str:
    """The first rank's reason that is not empty."""
    reasons: list[str] = [""] * group.size()
    dist.all_gather_object(reasons, reason, group=group)
    return next((f"rank {rank}: {one}" for rank, one in enumerate(reasons) if one), "")
