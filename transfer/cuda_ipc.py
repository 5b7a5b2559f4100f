"""The peer path on CUDA inside a node: a rank pulls weights from where their home has them."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from foremoe.errors import TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.content import write_stamp
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientCopy
from foremoe.transfer.ipc_trial import try_with_child
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import Experts, PeerTransport
from foremoe.transfer.shared_weights import (
    Handle,
    SharedExperts,
    export,
    locate,
    open_handle,
)
from foremoe.transfer.ticket import Ticket, mark, side_stream
from foremoe.transfer.transport import HostTransport, Probed, ProbeSite, cuda_device

_TRIAL_BYTES = 1024

_log = logging.getLogger("foremoe.transfer")


@dataclass(frozen=True, slots=True)
class _Offer:
    """Where a rank's experts are; handles only if they are elsewhere than before."""

    experts: SharedExperts
    handles: list[Handle] | None
    refusal: str = ""


class CudaIpcTransport(PeerTransport, Probed):
    """Each rank maps the others' parameters and copies from there, by the copy engine.

    The homes take no part, so nobody waits for a sender. A pull never reads weights that change:
    the puller's compute waits for it, the home's backward needs what that computes, and the home's
    optimizer comes after its backward. A pull that nobody waited for may read what it likes: it is
    settled and void before the next ones. Gradients take another transport.
    """

    name = "CUDA IPC peer pull"
    path = Path.PEER
    relays = False

    def __init__(
        self,
        rank: int,
        topology: Topology,
        ends: PeerEnds,
        host: HostTransport | None,
        group: ProcessGroup,
        gradients: PeerTransport | None,
        wait_seconds: float,
    ) -> None:
        """group: gloo, over which the ranks tell each other where their weights are."""
        super().__init__(rank, topology, ends, host)
        self._group = group
        self._gradients = gradients
        self._wait_seconds = wait_seconds
        self._device = ends.pool.device
        self._stream = side_stream(self._device)
        self._flights: deque[tuple[Ticket, Ticket]] = deque()
        self._exported: list[Tensor] = []  # kept, so that no address comes to mean something else
        self._storages: list[list[Tensor]] = [[] for _ in range(topology.ranks)]
        self._experts: list[SharedExperts] = []

    @property
    def lost(self) -> bool:
        return super().lost or (self._gradients is not None and self._gradients.lost)

    @classmethod
    def _try(cls, site: ProbeSite) -> str:
        return try_with_child(cuda_device(), site.wait_seconds)

    def post(self, copies: Sequence[Copy], generation: int) -> None:
        for copy in copies:
            if copy.destination == self._rank and copy.path is Path.PEER:
                try:
                    if self._lost is not None:
                        raise self._lost
                    with torch.cuda.stream(self._stream):
                        self._pull(copy, generation)
                except (RuntimeError, TransferError) as error:
                    self._fill_otherwise(copy, generation, self._lose(error))

    def post_gradients(
        self, copies: Sequence[GradientCopy], into: Mapping[GradientCopy, Tensor], generation: int
    ) -> None:
        if self._gradients is None:
            raise TransferError("replica gradients cannot return by CUDA IPC alone")
        self._gradients.post_gradients(copies, into, generation)

    def weights_changed(self, own: Experts, generation: int) -> None:
        """Tell all ranks where this one's weights are, once they are written; map theirs."""
        mark(self._device).settle(self._wait_seconds, "the optimizer's last work")
        experts, storages = locate(own, self._ends.layout, self._ends.checksums)
        before = [storage.data_ptr() for storage in self._exported]
        moved = [storage.data_ptr() for storage in storages] != before
        try:
            handles = [export(storage) for storage in storages] if moved else None
            own_offer = _Offer(experts, handles)
        except RuntimeError as error:
            own_offer = _Offer(experts, None, f"rank {self._rank} cannot share its memory: {error}")
        offers = [own_offer] * self._topology.ranks
        dist.all_gather_object(offers, own_offer, group=self._group)  # also a barrier
        self._exported = storages
        self._experts = [offer.experts for offer in offers]
        try:
            for source, offer in enumerate(offers):
                self._open(source, offer)
        except (RuntimeError, TransferError) as error:
            self._lose(error)
        if self._gradients is not None:
            self._gradients.weights_changed(own, generation)

    def settle(self, wait_seconds: float) -> None:
        while self._flights:
            begun, ended = self._flights.popleft()
            ended.settle(wait_seconds, f"peer pulls of rank {self._rank}")
            seconds = ended.seconds_since(begun)
            self._ends.statistics.add_speed(Path.PEER, self._ends.layout.payload_bytes, seconds)
        if self._gradients is not None:
            self._gradients.settle(wait_seconds)

    def close(self, wait_seconds: float) -> None:
        try:
            self.settle(wait_seconds)  # nothing may be read or written when the memory goes
        except TransferError as error:
            _log.warning("peer pulls were given up at the end: %s", error)
        self._flights.clear()
        self._storages.clear()
        if self._gradients is not None:
            self._gradients.close(wait_seconds)

    def _open(self, source: int, offer: _Offer) -> None:
        if offer.refusal:
            raise TransferError(offer.refusal)
        if source != self._rank and offer.handles is not None:
            self._storages[source] = [open_handle(one, self._device) for one in offer.handles]

    def _pull(self, copy: Copy, generation: int) -> None:
        pool, layout = self._ends.pool, self._ends.layout
        home = self._experts[copy.source]
        sources = home.tensors(copy.layer, copy.expert, self._storages[copy.source], layout.dtype)
        content = copy.content(generation)
        slab = pool.begin_fill(copy.slot, content, self._wait_seconds)
        views = pool.weight_views(copy.slot).values()
        begun = mark(self._device, timed=True)
        for view, source in zip(views, sources, strict=True):
            view.copy_(source, non_blocking=True)
        if pool.stamps:
            write_stamp(slab, content, home.checksums.get((copy.layer, copy.expert), 0))
        ended = mark(self._device, timed=True)
        pool.end_fill(copy.slot, content, ended)
        self._flights.append((begun, ended))
        self._ends.statistics.add_copy(Path.PEER, layout.payload_bytes)


def try_group(group: ProcessGroup, device: torch.device) -> bool:
    """Let every rank of one node read a few bytes of every other one's memory; collective.

    Raises TransferError where the bytes differ, RuntimeError where CUDA refuses.
    """
    rank, ranks = group.rank(), group.size()
    own = torch.full((_TRIAL_BYTES,), rank, dtype=torch.uint8, device=device)
    torch.cuda.synchronize(device)
    handles: list[Handle | str] = [""] * ranks
    try:
        handle: Handle | str = export(own)
    except RuntimeError as error:
        handle = str(error)
    dist.all_gather_object(handles, handle, group=group)
    try:
        for source, other in enumerate(handles):
            if isinstance(other, str):
                raise TransferError(f"rank {source} cannot share its memory: {other}")
            if source != rank and not bool((open_handle(other, device) == source).all()):
                raise TransferError(f"rank {rank} read other bytes than rank {source} wrote")
    finally:
        dist.barrier(group=group)  # nobody's memory goes before all have read it
    return True
