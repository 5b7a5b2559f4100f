"""What one rank does in one round of peer copies, for weights and for gradients."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.distributed import ProcessGroup, Work

from foremoe.errors import TransferError
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientCopy, GradientInbox
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import Content, SlotKey, SlotPool, SlotState
from foremoe.transfer.statistics import StatisticsRecorder


class Wire:
    """Sends and receives of one round; ``tag`` keeps it apart from every other one under way."""

    def __init__(self, group: ProcessGroup, rank: int, first_tag: int) -> None:
        self._group = group
        self._rank = rank
        self._tag = first_tag

    def send(self, tensors: Sequence[Tensor], destination: int) -> list[Work]:
        assert destination != self._rank, "a rank never sends to itself"
        return [
            self._group.send([tensor], destination, self._tag + index)
            for index, tensor in enumerate(tensors)
        ]

    def receive(self, tensors: Sequence[Tensor], source: int) -> list[Work]:
        assert source != self._rank, "a rank never receives from itself"
        return [
            self._group.recv([tensor], source, self._tag + index)
            for index, tensor in enumerate(tensors)
        ]


class PeerRound(ABC):
    """At most one send and one receive of this rank."""

    def ready(self) -> bool:
        """Whether nothing that is still under way uses the same slots."""
        return True

    @abstractmethod
    def begin(self, wire: Wire) -> list[Work]:
        """Post the sends and receives."""

    @abstractmethod
    def end(self) -> None:
        """All of them are done."""

    @abstractmethod
    def give_up(self, error: TransferError) -> None:
        """The peer path is lost, before or during this round."""


class FillRound(PeerRound):
    """Weights: perhaps one expert of this rank goes out, perhaps one comes into a slot."""

    def __init__(
        self,
        outgoing: Sequence[tuple[Copy, Sequence[Tensor]]],
        incoming: Sequence[Copy],
        generation: int,
        pool: SlotPool,
        layout: SlabLayout,
        statistics: StatisticsRecorder,
        other_path: Callable[[Copy, int, TransferError], None],
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._generation = generation
        self._pool = pool
        self._layout = layout
        self._statistics = statistics
        self._other_path = other_path

    def ready(self) -> bool:
        return all(self._pool.state(_key(copy)) is SlotState.FREE for copy in self._incoming)

    def begin(self, wire: Wire) -> list[Work]:
        works: list[Work] = []
        for copy in self._incoming:
            self._pool.begin_fill(_key(copy), wait_seconds=0.0)
            views = list(self._pool.weight_views(_key(copy)).values())
            works += wire.receive(views, copy.source)
        for copy, tensors in self._outgoing:
            works += wire.send(tensors, copy.destination)
        return works

    def end(self) -> None:
        for copy in self._incoming:
            self._pool.end_fill(_key(copy), Content(copy.expert, self._generation))
            self._statistics.add_copy(Path.PEER, self._layout.payload_bytes)

    def give_up(self, error: TransferError) -> None:
        for copy in self._incoming:
            self._pool.undo_fill(_key(copy))
            self._other_path(copy, self._generation, error)


class GradientRound(PeerRound):
    """Gradients: perhaps one replica's slab goes home, perhaps one of an own expert arrives."""

    def __init__(
        self,
        outgoing: Sequence[GradientCopy],
        incoming: Mapping[GradientCopy, Tensor],
        pool: SlotPool,
        inbox: GradientInbox,
        statistics: StatisticsRecorder,
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._pool = pool
        self._inbox = inbox
        self._statistics = statistics

    def begin(self, wire: Wire) -> list[Work]:
        works: list[Work] = []
        for copy, buffer in self._incoming.items():
            works += wire.receive([buffer], copy.rank)
        for copy in self._outgoing:
            works += wire.send([self._pool.gradients(SlotKey(copy.layer, copy.slot))], copy.home)
        return works

    def end(self) -> None:
        for copy, buffer in self._incoming.items():
            self._inbox.arrive(copy, buffer)
            self._statistics.add_gradient(buffer.numel())
        self._free_slots()

    def give_up(self, error: TransferError) -> None:
        self._inbox.fail(error)
        self._free_slots()

    def _free_slots(self) -> None:
        for copy in self._outgoing:
            self._pool.end_gradients(SlotKey(copy.layer, copy.slot))


def _key(copy: Copy) -> SlotKey:
    return SlotKey(copy.layer, copy.slot)
