"""The peer path on CUDA: sends and receives in groups, on a stream of their own."""

import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from foremoe.errors import TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.content import write_stamp
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientCopy
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import HomeWeights, PeerTransport
from foremoe.transfer.schedule.rounds import rounds, rounds_in_order
from foremoe.transfer.ticket import Ticket, mark, side_stream
from foremoe.transfer.transport import HostTransport, Probed

MOST_OPERATIONS = 32  # of a rank in a group; hundreds hung on GPUs (SGLang pull request 30829)

Message = tuple[Tensor, int]  # what, and the rank it goes to or comes from

_log = logging.getLogger("foremoe.transfer")


class GroupWire(Probed):
    """Sends and receives of all ranks of a group, several at once."""

    path = Path.PEER

    @abstractmethod
    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Enqueue one group on the current stream, whose later work comes after it.

        Between two ranks, messages match in the order given. Raises RuntimeError.
        """

    @abstractmethod
    def close(self, finished: bool = True) -> None:
        """Give up what the wire holds. finished: nothing is under way any more."""


class GroupedPeerTransport(PeerTransport):
    """Enqueues rounds from the calling thread, which all ranks must do in the same order.

    Several rounds make a group; all ranks deal them alike, so that both ends of a message are in
    the same one. One thread issues everything: communicators of one device must be used in one
    order on all ranks, which is that of the training threads' hook points.
    """

    relays = True

    def __init__(
        self,
        rank: int,
        topology: Topology,
        ends: PeerEnds,
        home_weights: HomeWeights,
        host: HostTransport | None,
        wire: GroupWire,
        wait_seconds: float,
    ) -> None:
        super().__init__(rank, topology, ends, host)
        self._home_weights = home_weights
        self._wire = wire
        self._wait_seconds = wait_seconds
        self._device = ends.pool.device
        self._stream = side_stream(self._device)
        # Begun, ended, bytes received, and whether some of them came from another node.
        self._flights: deque[tuple[Ticket, Ticket, int, bool]] = deque()

    def post(self, copies: Sequence[Copy], generation: int) -> None:
        peer = [copy for copy in copies if copy.path is Path.PEER]
        dealt = rounds_in_order(peer)
        relays = [any(peer[index].relay is not None for index in each) for each in dealt]
        messages = len(self._ends.layout.places) + self._ends.checksums
        for group in deal_groups(dealt, messages, relays):
            self._fill([peer[index] for index in group], generation)

    def post_gradients(
        self, copies: Sequence[GradientCopy], into: Mapping[GradientCopy, Tensor], generation: int
    ) -> None:
        del generation  # nothing here may still be of another one
        computed = mark(self._device)
        with torch.cuda.stream(self._stream):
            computed.wait()
            for group in deal_groups(rounds([(copy.rank, copy.home) for copy in copies]), 1):
                self._return([copies[index] for index in group], into)

    def weights_changed(
        self, own: Mapping[tuple[int, int], Mapping[str, Tensor]], generation: int
    ) -> None:
        del own, generation
        written = mark(self._device)
        with torch.cuda.stream(self._stream):
            written.wait()

    def settle(self, wait_seconds: float) -> None:
        while self._flights:
            begun, ended, received, far = self._flights.popleft()
            ended.settle(wait_seconds, f"peer copies of rank {self._rank}")
            if received:
                seconds = ended.seconds_since(begun)
                self._ends.statistics.add_speed(Path.PEER, received, seconds, far)

    def close(self, wait_seconds: float) -> None:
        try:
            self.settle(wait_seconds)
        except TransferError as error:
            _log.warning("peer copies were given up at the end: %s", error)
            self._wire.close(finished=False)
        else:
            self._wire.close()

    def _fill(self, copies: Sequence[Copy], generation: int) -> None:
        outgoing = [copy for copy in copies if copy.source == self._rank]
        incoming = [copy for copy in copies if copy.destination == self._rank]
        if not (outgoing or incoming):
            return
        try:
            if self._lost is not None:
                raise self._lost
            with torch.cuda.stream(self._stream):
                self._exchange_weights(outgoing, incoming, generation)
        except (RuntimeError, TransferError) as error:
            lost = self._lose(error)
            for copy in incoming:
                self._fill_otherwise(copy, generation, lost)

    def _exchange_weights(
        self, outgoing: Sequence[Copy], incoming: Sequence[Copy], generation: int
    ) -> None:
        pool, layout, checksums = self._ends.pool, self._ends.layout, self._ends.checksums
        sums = torch.zeros(len(incoming), dtype=torch.int64, device=self._device)
        sends: list[Message] = []
        receives: list[Message] = []
        for copy in outgoing:
            if copy.relay is None:
                tensors = self._home_weights(copy.layer, copy.expert)
            else:
                tensors = pool.lent(copy.relay.slot, copy.content(generation))
            layout.check(tensors)
            sent = [tensors[place.name].detach().contiguous() for place in layout.places]
            if checksums:
                total = self._ends.checksum(copy, tensors)
                sent.append(torch.tensor([total], device=self._device))
            sends += [(tensor, copy.destination) for tensor in sent]
        for index, copy in enumerate(incoming):
            pool.begin_fill(copy.slot, copy.content(generation), self._wait_seconds)
            into = list(pool.weight_views(copy.slot).values())
            into += [sums[index : index + 1]] if checksums else []
            receives += [(tensor, copy.source) for tensor in into]
        ended = self._exchange(sends, receives)
        for copy in outgoing:
            if copy.relay is not None:
                pool.sent_on(copy.relay.slot, ended)
        for index, copy in enumerate(incoming):
            content = copy.content(generation)
            if pool.stamps:
                write_stamp(pool.weights(copy.slot), content, int(sums[index].item()))
            pool.end_fill(copy.slot, content, ended)
            self._ends.statistics.add_copy(Path.PEER, layout.payload_bytes)

    def _return(self, copies: Sequence[GradientCopy], into: Mapping[GradientCopy, Tensor]) -> None:
        pool, inbox = self._ends.pool, self._ends.inbox
        outgoing = [copy for copy in copies if copy.rank == self._rank]
        incoming = [copy for copy in copies if copy.home == self._rank]
        if not (outgoing or incoming):
            return
        try:
            if self._lost is not None:
                raise self._lost
            ended = self._exchange(
                [(pool.gradients(copy.slot), copy.home) for copy in outgoing],
                [(into[copy], copy.rank) for copy in incoming],
            )
        except (RuntimeError, TransferError) as error:
            inbox.fail(self._lose(error))
        else:
            for copy in incoming:
                inbox.arrive(copy, into[copy], ended)
                self._ends.statistics.add_gradient(into[copy].numel())
        for copy in outgoing:
            pool.end_gradients(copy.slot)

    def _exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> Ticket:
        begun = mark(self._device, timed=True)
        self._wire.exchange(sends, receives)
        ended = mark(self._device, timed=True)
        received = sum(tensor.nbytes for tensor, _ in receives)
        far = any(self._is_far(source) for _, source in receives)
        self._flights.append((begun, ended, received, far))
        return ended


def deal_groups(
    dealt: Sequence[Sequence[int]], messages: int, relays: Sequence[bool] | None = None
) -> list[list[int]]:
    """Put rounds together: at most one send and one receive each, of ``messages`` operations.

    relays: by round, whether it sends on what came before, which must then be another group.
    """
    most = max(1, MOST_OPERATIONS // (2 * messages))
    groups: list[list[int]] = []
    rounds_inside = most
    for round_, relay in zip(dealt, relays or [False] * len(dealt), strict=True):
        if relay or rounds_inside == most:
            groups.append([])
            rounds_inside = 0
        groups[-1] += round_
        rounds_inside += 1
    return groups
