"""The peer path on CPU: slabs between ranks over gloo, in a process group of its own."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from foremoe.errors import TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientCopy, GradientInbox
from foremoe.transfer.host import SharedMemoryTransport
from foremoe.transfer.peer_rounds import FillRound, GradientRound, PeerRound, Wire
from foremoe.transfer.schedule.rounds import rounds
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import SlotKey, SlotPool
from foremoe.transfer.statistics import StatisticsRecorder
from foremoe.transfer.transport import Probe, Transport
from foremoe.transfer.worker import Worker

HomeWeights = Callable[[int, int], Mapping[str, Tensor]]

ROUNDS_IN_FLIGHT = 2  # one moves its bytes while the next one shakes hands
_TAGS = 2**30

_log = logging.getLogger("foremoe.transfer")


class GlooPeerTransport(Transport):
    """One worker thread issues every send and receive, on all ranks in the same order.

    The order is that of ``post`` and ``post_gradients``, which all ranks must call alike; each
    call's copies go in rounds. A round waits for nothing but earlier rounds, so the ranks cannot
    wait for each other in a circle. When the path is lost, later rounds of this rank read the host
    cache where it serves, and fail where it does not.
    """

    def __init__(
        self,
        rank: int,
        topology: Topology,
        group: ProcessGroup,
        layout: SlabLayout,
        home_weights: HomeWeights,
        pool: SlotPool,
        inbox: GradientInbox,
        host: SharedMemoryTransport | None,
        statistics: StatisticsRecorder,
        wait_seconds: float,
    ) -> None:
        self._rank = rank
        self._topology = topology
        self._group = group
        self._layout = layout
        self._home_weights = home_weights
        self._pool = pool
        self._inbox = inbox
        self._host = host
        self._statistics = statistics
        self._timeout = timedelta(seconds=wait_seconds)
        self._rounds = 0
        self._flying: deque[tuple[PeerRound, Sequence[Work]]] = deque()
        self._lost: TransferError | None = None
        self._worker = Worker(f"foremoe-peer-copy-{rank}", when_idle=self._land)

    @property
    def lost(self) -> bool:
        """Whether the path broke; it does not come back."""
        return self._lost is not None

    def probe(self) -> Probe:
        if self._lost is not None:
            return Probe(False, str(self._lost))
        return Probe(True, f"gloo group of {self._group.size()} ranks")

    def post(self, copies: Sequence[Copy], generation: int) -> None:
        peer = [copy for copy in copies if copy.path is Path.PEER]
        if peer:
            outgoing = {
                copy: self._wire_tensors(copy.layer, copy.expert)
                for copy in peer
                if copy.source == self._rank
            }
            self._worker.post(partial(self._fill, peer, outgoing, generation))

    def post_gradients(self, copies: Sequence[GradientCopy], buffers: Sequence[Tensor]) -> None:
        """Queue the way home of replica gradients; ``buffers`` are for those of own experts."""
        if copies:
            own = [copy for copy in copies if copy.home == self._rank]
            into = dict(zip(own, buffers, strict=True))
            self._worker.post(partial(self._return, copies, into))

    def close(self, wait_seconds: float) -> None:
        if not self._worker.close(wait_seconds):
            self._break_pairs()
            self._worker.close(wait_seconds)

    def _wire_tensors(self, layer: int, expert: int) -> list[Tensor]:
        """An expert's tensors in slab order; each is one message."""
        tensors = self._home_weights(layer, expert)
        self._layout.check(tensors)
        return [tensors[place.name].detach().contiguous() for place in self._layout.places]

    def _fill(
        self,
        copies: Sequence[Copy],
        outgoing: Mapping[Copy, Sequence[Tensor]],
        generation: int,
    ) -> None:
        for indices in rounds([(copy.source, copy.destination) for copy in copies]):
            dealt = [copies[index] for index in indices]
            mine = FillRound(
                [(copy, outgoing[copy]) for copy in dealt if copy.source == self._rank],
                [copy for copy in dealt if copy.destination == self._rank],
                generation,
                self._pool,
                self._layout,
                self._statistics,
                self._other_path,
            )
            takes_part = any(self._rank in (copy.source, copy.destination) for copy in dealt)
            self._start(mine, takes_part)

    def _return(self, copies: Sequence[GradientCopy], into: Mapping[GradientCopy, Tensor]) -> None:
        for indices in rounds([(copy.rank, copy.home) for copy in copies]):
            dealt = [copies[index] for index in indices]
            mine = GradientRound(
                [copy for copy in dealt if copy.rank == self._rank],
                {copy: into[copy] for copy in dealt if copy.home == self._rank},
                self._pool,
                self._inbox,
                self._statistics,
            )
            takes_part = any(self._rank in (copy.rank, copy.home) for copy in dealt)
            self._start(mine, takes_part)

    def _start(self, mine: PeerRound, takes_part: bool) -> None:
        """Post one round; every rank counts all rounds, so that tags agree."""
        wire = Wire(self._group, self._rank, 1 + self._rounds * len(self._layout.places) % _TAGS)
        self._rounds += 1
        if not takes_part:
            return
        while len(self._flying) >= ROUNDS_IN_FLIGHT or (self._flying and not mine.ready()):
            self._land()
        if self._lost is None:
            try:
                self._flying.append((mine, mine.begin(wire)))
            except (RuntimeError, TransferError) as error:
                self._lose(error)
                mine.give_up(self._lost_error())
        else:
            mine.give_up(self._lost)

    def _land(self) -> bool:
        """Wait for the oldest round under way; False when there is none."""
        if not self._flying:
            return False
        oldest, works = self._flying.popleft()
        try:
            for work in works:
                work.wait(self._timeout)
        except RuntimeError as error:
            self._lose(error)
            oldest.give_up(self._lost_error())
        else:
            oldest.end()
        return True

    def _other_path(self, copy: Copy, generation: int, error: TransferError) -> None:
        """Fill a slot of this rank without the peer path, or fail it."""
        same_node = self._topology.node_of(copy.source) == self._topology.node_of(self._rank)
        if self._host is not None and same_node:
            self._host.fill(copy, generation)
        else:
            self._pool.fail(SlotKey(copy.layer, copy.slot), error)

    def _lose(self, error: Exception) -> None:
        if self._lost is not None:
            return
        self._lost = TransferError(f"peer path lost on rank {self._rank}: {error}")
        way_out = "the host cache serves in its place" if self._host else "there is no host cache"
        _log.warning("peer path lost on rank %d (%s); %s", self._rank, error, way_out)
        self._break_pairs()

    def _lost_error(self) -> TransferError:
        assert self._lost is not None
        return self._lost

    def _break_pairs(self) -> None:
        """Make every rank's pending sends and receives fail now rather than at their deadline.

        gloo closes a pair when a receive on it times out; ``abort`` wakes nobody up.
        """
        for peer in range(self._group.size()):
            if peer != self._rank:
                with suppress(RuntimeError):
                    nothing = torch.empty(1, dtype=torch.uint8)
                    self._group.recv([nothing], peer, 0).wait(timedelta(milliseconds=1))
