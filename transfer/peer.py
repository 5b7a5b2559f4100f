"""The peer path on CPU: slabs between ranks over gloo, in a process group of its own."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from foremoe.errors import ForemoeError, TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientCopy, GradientInbox
from foremoe.transfer.host import SharedMemoryTransport
from foremoe.transfer.rounds import rounds
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import Content, SlotKey, SlotPool
from foremoe.transfer.statistics import StatisticsRecorder
from foremoe.transfer.transport import Probe, Transport
from foremoe.transfer.worker import Worker

HomeWeights = Callable[[int, int], Mapping[str, Tensor]]

_log = logging.getLogger("foremoe.transfer")


class GlooPeerTransport(Transport):
    """One worker thread issues every send and receive, on all ranks in the same order.

    The order is that of ``post`` and ``post_gradients``, which all ranks must call alike; each
    call's copies go in rounds. No job waits for anything but its own sends and receives, so the
    ranks cannot wait for each other in a circle. When the path is lost, later jobs of this rank
    read the host cache where it serves, and fail where it does not.
    """

    def __init__(
        self,
        rank: int,
        topology: Topology,
        group: ProcessGroup,
        layout: SlabLayout,
        home_weights: HomeWeights,
        pool: SlotPool,
        inbox: GradientInbox | None,
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
        self._wait_seconds = wait_seconds
        self._jobs = 0
        self._lost: TransferError | None = None
        self._worker = Worker(f"foremoe-peer-copy-{rank}")

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
        if not peer:
            return
        self._jobs += 1
        tag = self._jobs
        outgoing = {
            copy: self._wire_tensors(copy.layer, copy.expert)
            for copy in peer
            if copy.source == self._rank
        }
        order = rounds([(copy.source, copy.destination) for copy in peer])
        steps = [self._mine([peer[index] for index in indices]) for indices in order]
        self._worker.post(lambda: self._fill(steps, outgoing, generation, tag))

    def post_gradients(self, copies: Sequence[GradientCopy], buffers: Sequence[Tensor]) -> None:
        """Queue the way home of replica gradients; ``buffers`` are for those of own experts."""
        if not copies:
            return
        self._jobs += 1
        tag = self._jobs
        own = iter(buffers)
        into = {copy: next(own) for copy in copies if copy.home == self._rank}
        order = rounds([(copy.rank, copy.home) for copy in copies])
        steps = [[copies[index] for index in indices] for indices in order]
        self._worker.post(lambda: self._return(steps, into, tag))

    def close(self, wait_seconds: float) -> None:
        if not self._worker.close(wait_seconds):
            self._break_pairs()
            self._worker.close(wait_seconds)

    def _mine(self, copies: Sequence[Copy]) -> list[Copy]:
        return [copy for copy in copies if self._rank in (copy.source, copy.destination)]

    def _wire_tensors(self, layer: int, expert: int) -> list[Tensor]:
        """An expert's tensors in slab order; each is one message."""
        tensors = self._home_weights(layer, expert)
        self._layout.check(tensors)
        return [tensors[place.name].detach().contiguous() for place in self._layout.places]

    def _fill(
        self,
        steps: Sequence[Sequence[Copy]],
        outgoing: Mapping[Copy, Sequence[Tensor]],
        generation: int,
        tag: int,
    ) -> None:
        for step in steps:
            if self._lost is None:
                try:
                    self._exchange(step, outgoing, generation, tag)
                except (RuntimeError, ForemoeError) as error:
                    self._lose(error)
            if self._lost is not None:
                self._fall_back(step, generation)

    def _exchange(
        self,
        step: Sequence[Copy],
        outgoing: Mapping[Copy, Sequence[Tensor]],
        generation: int,
        tag: int,
    ) -> None:
        works: list[Work] = []
        for copy in step:
            if copy.destination == self._rank:
                self._pool.begin_fill(SlotKey(copy.layer, copy.slot), self._wait_seconds)
                views = self._pool.weight_views(SlotKey(copy.layer, copy.slot))
                works += [self._receive(view, copy.source, tag) for view in views.values()]
        for copy in step:
            if copy.source == self._rank:
                works += [self._send(t, copy.destination, tag) for t in outgoing[copy]]
        self._wait(works)
        for copy in step:
            if copy.destination == self._rank:
                key = SlotKey(copy.layer, copy.slot)
                self._pool.end_fill(key, Content(copy.expert, generation))
                self._statistics.add_copy(Path.PEER, self._layout.payload_bytes)

    def _fall_back(self, step: Sequence[Copy], generation: int) -> None:
        """Fill this rank's slots of ``step`` without the peer path."""
        assert self._lost is not None
        for copy in step:
            key = SlotKey(copy.layer, copy.slot)
            if copy.destination != self._rank:
                continue
            self._pool.undo_fill(key)
            same_node = self._topology.node_of(copy.source) == self._topology.node_of(self._rank)
            if self._host is not None and same_node:
                self._host.fill(copy, generation)
            else:
                self._pool.fail(key, self._lost)

    def _return(
        self,
        steps: Sequence[Sequence[GradientCopy]],
        into: Mapping[GradientCopy, Tensor],
        tag: int,
    ) -> None:
        for step in steps:
            if self._lost is None:
                try:
                    self._exchange_gradients(step, into, tag)
                except RuntimeError as error:
                    self._lose(error)
            for copy in step:
                if self._lost is not None and self._rank in (copy.rank, copy.home):
                    self._give_up_gradient()
                if copy.rank == self._rank:
                    self._pool.end_gradients(SlotKey(copy.layer, copy.slot))

    def _exchange_gradients(
        self, step: Sequence[GradientCopy], into: Mapping[GradientCopy, Tensor], tag: int
    ) -> None:
        works: list[Work] = []
        for copy in step:
            if copy.home == self._rank:
                works.append(self._receive(into[copy], copy.rank, tag))
        for copy in step:
            if copy.rank == self._rank:
                slab = self._pool.gradients(SlotKey(copy.layer, copy.slot))
                works.append(self._send(slab, copy.home, tag))
        self._wait(works)
        for copy in step:
            if copy.home == self._rank:
                self._inbox_of_training().arrive(copy, into[copy])
                self._statistics.add_gradient(into[copy].numel())

    def _give_up_gradient(self) -> None:
        assert self._lost is not None
        self._inbox_of_training().fail(self._lost)

    def _inbox_of_training(self) -> GradientInbox:
        assert self._inbox is not None, "gradients return only while training"
        return self._inbox

    def _send(self, tensor: Tensor, destination: int, tag: int) -> Work:
        assert destination != self._rank
        return self._group.send([tensor], destination, tag)

    def _receive(self, tensor: Tensor, source: int, tag: int) -> Work:
        assert source != self._rank
        return self._group.recv([tensor], source, tag)

    def _wait(self, works: Sequence[Work]) -> None:
        for work in works:
            work.wait(self._timeout)

    def _lose(self, error: Exception) -> None:
        self._lost = TransferError(f"peer path lost on rank {self._rank}: {error}")
        way_out = "the host cache serves in its place" if self._host else "there is no host cache"
        _log.warning("peer path lost on rank %d (%s); %s", self._rank, error, way_out)
        self._break_pairs()

    def _break_pairs(self) -> None:
        """Make every rank's pending sends and receives fail now rather than at their deadline.

        gloo closes a pair when a receive on it times out; ``abort`` wakes nobody up.
        """
        for peer in range(self._group.size()):
            if peer != self._rank:
                with suppress(RuntimeError):
                    nothing = torch.empty(1, dtype=torch.uint8)
                    self._group.recv([nothing], peer, 0).wait(timedelta(milliseconds=1))
