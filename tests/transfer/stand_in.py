"""An engine's transports of CUDA on the CPU, where what they enqueue is done at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from foremoe.planner.problem import Topology
from foremoe.transfer import engine as engine_module
from foremoe.transfer.grouped_peer import GroupedPeerTransport
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.host_stream import HostStreamTransport
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import PeerTransport
from foremoe.transfer.torch_wire import TorchWire
from foremoe.transfer.transport import HostTransport

CPU = torch.device("cpu")


def peer_in_groups(
    rank: int,
    topology: Topology,
    group: dist.ProcessGroup,
    device_group: dist.ProcessGroup | None,
    ends: PeerEnds,
    home_weights: Any,
    host: Any,
    wait_seconds: float,
) -> PeerTransport:
    """What an engine opens on CUDA, over gloo."""
    assert device_group is None
    wire = TorchWire(group, CPU)
    return GroupedPeerTransport(rank, topology, ends, home_weights, host, wire, wait_seconds)


def host_by_streams(
    rank: int, cache: HostExpertCache | None, ends: PeerEnds, wait_seconds: float
) -> HostTransport | None:
    """What an engine opens on CUDA."""
    if cache is None:
        return None
    return HostStreamTransport(rank, cache, ends.pool, ends.statistics, wait_seconds)


@contextmanager
def transports_of_cuda() -> Iterator[None]:
    """Engines made inside have them."""
    before = engine_module.open_host, engine_module.open_peer
    engine_module.open_host, engine_module.open_peer = host_by_streams, peer_in_groups
    try:
        yield
    finally:
        engine_module.open_host, engine_module.open_peer = before
