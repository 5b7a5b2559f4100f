"""A few bytes moved by a transport on this machine: what probes are made of."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed import ProcessGroup, ProcessGroupGloo

from foremoe.errors import TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.content import Content
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientInbox
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import HomeWeights, PeerTransport
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import SlotPool
from foremoe.transfer.statistics import StatisticsRecorder
from foremoe.transfer.transport import HostTransport, ProbeSite

LAYOUT = SlabLayout.from_shapes({"bytes": (1 << 18,)}, torch.uint8)
_EXPERT = Content(layer=0, expert=0, generation=1)
_CPU = torch.device("cpu")

OpenPeer = Callable[
    [int, Topology, ProcessGroup, PeerEnds, HomeWeights, HostTransport | None, float],
    PeerTransport,
]


@contextmanager
def trial_cache(site: ProbeSite) -> Iterator[HostExpertCache]:
    """A host cache of one expert in ``site.directory``, gone afterwards."""
    cache = HostExpertCache.create(site.directory, [0], 1, LAYOUT, local_ranks=1)
    try:
        yield cache
    finally:
        cache.unlink()
        cache.close()


def try_host(kind: type[HostTransport], site: ProbeSite, device: torch.device = _CPU) -> str:
    """Write an expert through one mapping of a cache, have it copied into a slot from another."""
    truth = _some_bytes()
    with trial_cache(site) as written:
        read = HostExpertCache.attach(written.path, [0], 1, LAYOUT)
        written.write(0, 0, truth, _EXPERT.generation)
        pool = SlotPool(1, LAYOUT, training=False, checksums=False, device=device)
        transport = kind(0, read, pool, StatisticsRecorder(1), site.wait_seconds)
        try:
            transport.post([Copy(0, 0, 0, 0, 0, Path.HOST)], _EXPERT.generation)
            _compare(pool, truth, site)
        finally:
            transport.close(site.wait_seconds)
            read.close()
    return f"{LAYOUT.payload_bytes >> 10} KiB through {site.directory}"


def try_peer(open_peer: OpenPeer, site: ProbeSite) -> str:
    """Send an expert between two ranks of this process, over the loopback network."""
    store, truth = HashStore(), _some_bytes()
    timeout = timedelta(seconds=site.wait_seconds)

    def connect(rank: int) -> Any:  # a backend, which has a group's sends and receives
        return ProcessGroupGloo(PrefixStore("foremoe-probe", store), rank, 2, timeout)

    with ThreadPoolExecutor(2) as threads:
        groups = list(threads.map(connect, range(2)))
    pools = [SlotPool(1, LAYOUT, training=False, checksums=False) for _ in groups]
    with closing(_Transports()) as transports:
        for rank, (group, pool) in enumerate(zip(groups, pools, strict=True)):
            inbox = GradientInbox(LAYOUT.gradient_layout())
            ends = PeerEnds(pool, inbox, LAYOUT, StatisticsRecorder(1), checksums=False)
            transports.opened.append(
                open_peer(
                    rank, Topology(2, 2), group, ends, lambda *_: truth, None, site.wait_seconds
                )
            )
        for transport in transports.opened:
            transport.post([Copy(0, 0, 0, 1, 0, Path.PEER)], _EXPERT.generation)
        _compare(pools[1], truth, site)
    return f"{LAYOUT.payload_bytes >> 10} KiB between two ranks on this machine"


class _Transports:
    def __init__(self) -> None:
        self.opened: list[PeerTransport] = []

    def close(self) -> None:
        for transport in self.opened:
            transport.close(wait_seconds=5.0)


def _some_bytes() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = LAYOUT.places[0].shape
    return {"bytes": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}


def _compare(pool: SlotPool, truth: dict[str, Tensor], site: ProbeSite) -> None:
    pool.wait_settled([0], site.wait_seconds)
    pool.use([], {0: _EXPERT})
    if not torch.equal(pool.weight_views(0)["bytes"].cpu(), truth["bytes"]):
        raise TransferError("other bytes arrived than were sent")
