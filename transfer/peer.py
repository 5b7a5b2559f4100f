"""The peer path on CPU: slabs between ranks over gloo, in a process group of its own."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from foremoe.errors import TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientCopy
from foremoe.transfer.peer_rounds import FillRound, GradientRound, PeerEnds, PeerRound, Wire
from foremoe.transfer.peer_transport import Experts, HomeWeights, PeerTransport
from foremoe.transfer.schedule.rounds import rounds, rounds_in_order
from foremoe.transfer.ticket import Ticket, mark, side_stream
from foremoe.transfer.transport import HostTransport, Probed, ProbeSite
from foremoe.transfer.trial import try_peer
from foremoe.transfer.worker import Worker

ROUNDS_IN_FLIGHT = 8  # the next ones shake hands while one moves its bytes


class GlooPeerTransport(PeerTransport, Probed):
    """One worker thread issues every send and receive, on all ranks in the same order.

    The order is that of ``post``, copies as given, and of ``post_gradients``, which all ranks must
    call alike; both are dealt into rounds. A round waits for nothing but earlier rounds, so the
    ranks cannot wait for each other in a circle. Slots on a CUDA device are served by way of host
    memory, which is slow and blocks the thread that posts.
    """

    name = "gloo peer"
    path = Path.PEER
    relays = True

    def __init__(
        self,
        rank: int,
        topology: Topology,
        group: ProcessGroup,
        ends: PeerEnds,
        home_weights: HomeWeights,
        host: HostTransport | None,
        wait_seconds: float,
    ) -> None:
        super().__init__(rank, topology, ends, host)
        self._group = group
        self._home_weights = home_weights
        self._timeout = timedelta(seconds=wait_seconds)
        self._rounds = 0
        self._flying: deque[tuple[PeerRound, Sequence[Work], int]] = deque()
        self._busy_since = 0.0
        self._landed_ns = 0
        self._received = 0
        self._far = False  # whether some of it came from another node
        self._worker = Worker(f"foremoe-peer-copy-{rank}", self._died, when_idle=self._land)
        stream = side_stream(ends.pool.device)
        if stream is not None:
            self._worker.post(partial(torch.cuda.set_stream, stream))

    @classmethod
    def _try(cls, site: ProbeSite) -> str:
        return try_peer(cls, site)

    def post(self, copies: Sequence[Copy], generation: int) -> None:
        peer = [copy for copy in copies if copy.path is Path.PEER]
        if peer:
            outgoing: dict[Copy, Mapping[str, Tensor] | None] = {}
            for copy in peer:
                if copy.source == self._rank:
                    outgoing[copy] = self._wire_tensors(copy, generation)
            self._worker.post(partial(self._fill, peer, outgoing, generation))

    def post_gradients(
        self, copies: Sequence[GradientCopy], into: Mapping[GradientCopy, Tensor], generation: int
    ) -> None:
        computed = mark(self._ends.pool.device)
        self._worker.post(partial(self._return, copies, into, generation, computed))

    def weights_changed(self, own: Experts, generation: int) -> None:
        """Nothing to do: weights are read when copies are posted."""

    def settle(self, wait_seconds: float) -> None:
        """Nothing to wait for: a slot is not free before its copy has ended."""

    def close(self, wait_seconds: float) -> None:
        if not self._worker.close(wait_seconds):
            self._break_pairs()
            self._worker.close(wait_seconds)

    def _wire_tensors(self, copy: Copy, generation: int) -> dict[str, Tensor] | None:
        """An expert's tensors in slab order; each is one message. None if they come first."""
        if copy.relay is not None:
            self._ends.pool.lend(copy.relay.slot, copy.content(generation))
            return None
        tensors, layout = self._home_weights(copy.layer, copy.expert), self._ends.layout
        layout.check(tensors)
        sent = {place.name: tensors[place.name].detach() for place in layout.places}
        return {name: tensor.contiguous().cpu() for name, tensor in sent.items()}

    def _fill(
        self,
        copies: Sequence[Copy],
        outgoing: Mapping[Copy, Mapping[str, Tensor] | None],
        generation: int,
    ) -> None:
        for indices in rounds_in_order(copies):
            dealt = [copies[index] for index in indices]
            out = next((copy for copy in dealt if copy.source == self._rank), None)
            into = next((copy for copy in dealt if copy.destination == self._rank), None)
            tensors = None if out is None else outgoing[out]
            other_path = self._fill_otherwise
            mine = FillRound(self._ends, out, tensors, into, generation, other_path)
            self._start(mine, out is not None or into is not None)

    def _return(
        self,
        copies: Sequence[GradientCopy],
        into: Mapping[GradientCopy, Tensor],
        generation: int,
        computed: Ticket,
    ) -> None:
        computed.wait()
        for indices in rounds([(copy.rank, copy.home) for copy in copies]):
            dealt = [copies[index] for index in indices]
            out = next((copy for copy in dealt if copy.rank == self._rank), None)
            home = next((copy for copy in dealt if copy.home == self._rank), None)
            received = None if home is None else (home, into[home])
            mine = GradientRound(self._ends, out, received, generation)
            self._start(mine, out is not None or home is not None)

    def _start(self, mine: PeerRound, takes_part: bool) -> None:
        """Post one round; every rank counts all rounds, so that tags agree."""
        messages = len(self._ends.layout.places) + 1
        wire = Wire(self._group, self._rank, self._rounds, messages)
        self._rounds += 1
        if not takes_part:
            return
        while len(self._flying) >= ROUNDS_IN_FLIGHT or (self._flying and not mine.ready()):
            self._land()
        if self._lost is None:
            if not self._flying:
                self._busy_since, self._received, self._far = time.monotonic(), 0, False
            try:
                began = time.monotonic_ns()
                self._flying.append((mine, mine.begin(wire), began))
            except (RuntimeError, TransferError) as error:
                mine.give_up(self._lose(error))
        else:
            mine.give_up(self._lost)

    def _land(self) -> bool:
        """Wait for the oldest round under way; False when there is none."""
        if not self._flying:
            return False
        oldest, works, began = self._flying.popleft()
        try:
            for work in works:
                work.wait(self._timeout)
        except RuntimeError as error:
            oldest.give_up(self._lose(error))
        else:
            received = oldest.end()
            self._received += received
            source = oldest.source()
            self._far |= source is not None and self._is_far(source)
            self._record_span(oldest, began, received)
            if self._received and not self._flying:
                # Only a whole busy time tells: rounds overlap, so that one seems to take no time.
                busy = time.monotonic() - self._busy_since
                self._ends.statistics.add_speed(Path.PEER, self._received, busy, self._far)
        return True

    def _record_span(self, landed: PeerRound, began: int, received: int) -> None:
        if self._ends.statistics.spans.on:
            track, name, layer = landed.label()
            # It moves its bytes once those of the round before have landed.
            since = max(began, self._landed_ns)
            self._ends.statistics.spans.add(track, name, since, layer, received)
        self._landed_ns = time.monotonic_ns()

    def _died(self, error: TransferError) -> None:
        self._lost = self._lost or error
        self._ends.pool.fail_all(error)
        self._ends.inbox.fail(error)

    def _lose(self, error: Exception) -> TransferError:
        known = self._lost is not None
        lost = super()._lose(error)
        if not known:
            self._break_pairs()
        return lost

    def _break_pairs(self) -> None:
        """Make every rank's pending sends and receives fail now rather than at their deadline.

        gloo closes a pair when a receive on it times out; ``abort`` wakes nobody up.
        """
        for peer in range(self._group.size()):
            if peer != self._rank:
                with suppress(RuntimeError):
                    nothing = torch.empty(1, dtype=torch.uint8)
                    self._group.recv([nothing], peer, 0).wait(timedelta(milliseconds=1))
