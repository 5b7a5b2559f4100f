"""What one rank does in one round of peer copies, for weights and for gradients."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from foremoe.errors import TransferError
from foremoe.transfer.content import Content, write_stamp
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientCopy, GradientInbox
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import SlotPool, SlotState
from foremoe.transfer.statistics import StatisticsRecorder
from foremoe.transfer.ticket import Ticket, mark

_SEQUENCE_BITS = 12
_SEQUENCES = (1 << _SEQUENCE_BITS) - 64  # room for the messages of the last round
_DIGESTS = 1 << 18


class Wire:
    """Sends and receives of one round, kept apart from those of other rounds under way.

    A message's tag names its content too, so that ranks whose ledgers have come apart do not take
    one expert for another: such a receive finds no partner and fails at its deadline.
    """

    def __init__(self, group: ProcessGroup, rank: int, round_number: int, messages: int) -> None:
        """messages: at most this many go from one rank to another in a round."""
        self._group = group
        self._rank = rank
        self._first = 1 + round_number * messages % _SEQUENCES

    def send(self, tensors: Sequence[Tensor], destination: int, content: Content) -> list[Work]:
        assert destination != self._rank, "a rank never sends to itself"
        tag = self._tag(content)
        return [
            self._group.send([tensor], destination, tag + index)
            for index, tensor in enumerate(tensors)
        ]

    def receive(self, tensors: Sequence[Tensor], source: int, content: Content) -> list[Work]:
        assert source != self._rank, "a rank never receives from itself"
        tag = self._tag(content)
        return [
            self._group.recv([tensor], source, tag + index) for index, tensor in enumerate(tensors)
        ]

    def _tag(self, content: Content) -> int:
        digest = zlib.crc32(str(content).encode()) % _DIGESTS
        return (digest << _SEQUENCE_BITS) + self._first


class Landing:
    """Where a message for ``target`` arrives: there, or in host memory if that is on a device."""

    def __init__(self, target: Tensor) -> None:
        self.target = target
        self.host = target
        if target.device.type != "cpu":
            self.host = torch.empty(target.shape, dtype=target.dtype, pin_memory=True)

    def forward(self) -> None:
        """Copy it on to the device, on the current stream."""
        if self.host is not self.target:
            self.target.copy_(self.host, non_blocking=True)


class PeerRound(ABC):
    """At most one send and one receive of this rank."""

    def ready(self) -> bool:
        """Whether nothing that is still under way uses the same slots."""
        return True

    @abstractmethod
    def begin(self, wire: Wire) -> list[Work]:
        """Post the sends and receives."""

    @abstractmethod
    def end(self) -> int:
        """All of them are done; bytes received."""

    @abstractmethod
    def give_up(self, error: TransferError) -> None:
        """The peer path is lost, before or during this round."""

    @abstractmethod
    def sources(self) -> list[int]:
        """The ranks from which something comes in."""

    @abstractmethod
    def label(self) -> tuple[str, str, int]:
        """Track and name of its span, and the layer."""


@dataclass(frozen=True, slots=True)
class PeerEnds:
    """What all rounds of a rank work on."""

    pool: SlotPool
    inbox: GradientInbox
    layout: SlabLayout
    statistics: StatisticsRecorder
    checksums: bool


class FillRound(PeerRound):
    """Weights: perhaps one expert of this rank goes out, perhaps one comes into a slot."""

    def __init__(
        self,
        ends: PeerEnds,
        outgoing: Sequence[tuple[Copy, Mapping[str, Tensor]]],
        incoming: Sequence[Copy],
        generation: int,
        other_path: Callable[[Copy, int, TransferError], None],
    ) -> None:
        self._ends = ends
        self._outgoing = outgoing
        self._incoming = incoming
        self._generation = generation
        self._other_path = other_path
        self._checksum = torch.zeros(1, dtype=torch.int64)
        self._landings: list[Landing] = []

    def ready(self) -> bool:
        return all(self._ends.pool.state(copy.slot) is SlotState.FREE for copy in self._incoming)

    def begin(self, wire: Wire) -> list[Work]:
        ends, works = self._ends, []
        for copy in self._incoming:
            ends.pool.begin_fill(copy.slot, wait_seconds=0.0)
            self._landings = [Landing(view) for view in ends.pool.weight_views(copy.slot).values()]
            into = [landing.host for landing in self._landings]
            into += [self._checksum] if ends.checksums else []
            works += wire.receive(into, copy.source, self._content(copy))
        for copy, tensors in self._outgoing:
            sent = list(tensors.values())
            if ends.checksums:
                sent.append(torch.tensor([ends.layout.checksum(tensors)]))
            works += wire.send(sent, copy.destination, self._content(copy))
        return works

    def end(self) -> int:
        ends = self._ends
        for copy in self._incoming:
            content = self._content(copy)
            for landing in self._landings:
                landing.forward()
            if ends.pool.stamps:
                write_stamp(ends.pool.weights(copy.slot), content, int(self._checksum.item()))
            ends.pool.end_fill(copy.slot, content, mark(ends.pool.device))
            ends.statistics.add_copy(Path.PEER, ends.layout.payload_bytes)
        return len(self._incoming) * ends.layout.payload_bytes

    def give_up(self, error: TransferError) -> None:
        for copy in self._incoming:
            self._other_path(copy, self._generation, error)

    def sources(self) -> list[int]:
        return [copy.source for copy in self._incoming]

    def label(self) -> tuple[str, str, int]:
        sent = [copy for copy, _ in self._outgoing]
        parts = [f"expert {copy.expert} from rank {copy.source}" for copy in self._incoming]
        parts += [f"expert {copy.expert} to rank {copy.destination}" for copy in sent]
        return Path.PEER, ", ".join(parts), [*self._incoming, *sent][0].layer

    def _content(self, copy: Copy) -> Content:
        return Content(copy.layer, copy.expert, self._generation)


class GradientRound(PeerRound):
    """Gradients: perhaps one replica's slab goes home, perhaps one of an own expert arrives."""

    def __init__(
        self,
        ends: PeerEnds,
        outgoing: Sequence[GradientCopy],
        incoming: Mapping[GradientCopy, Tensor],
        generation: int,
    ) -> None:
        self._ends = ends
        self._outgoing = outgoing
        self._incoming = incoming
        self._generation = generation
        self._landings = [Landing(buffer) for buffer in incoming.values()]

    def begin(self, wire: Wire) -> list[Work]:
        works: list[Work] = []
        for copy, landing in zip(self._incoming, self._landings, strict=True):
            works += wire.receive([landing.host], copy.rank, self._content(copy))
        for copy in self._outgoing:
            slab = self._ends.pool.gradients(copy.slot).cpu()
            works += wire.send([slab], copy.home, self._content(copy))
        return works

    def end(self) -> int:
        received = 0
        for landing in self._landings:
            landing.forward()
        there: Ticket = mark(self._ends.pool.device)
        for copy, buffer in self._incoming.items():
            self._ends.inbox.arrive(copy, buffer, there)
            self._ends.statistics.add_gradient(buffer.numel())
            received += buffer.numel()
        self._free_slots()
        return received

    def give_up(self, error: TransferError) -> None:
        self._ends.inbox.fail(error)
        self._free_slots()

    def sources(self) -> list[int]:
        return [copy.rank for copy in self._incoming]

    def label(self) -> tuple[str, str, int]:
        parts = [f"expert {copy.expert} from rank {copy.rank}" for copy in self._incoming]
        parts += [f"expert {copy.expert} to rank {copy.home}" for copy in self._outgoing]
        return "gradients", ", ".join(parts), [*self._incoming, *self._outgoing][0].layer

    def _free_slots(self) -> None:
        for copy in self._outgoing:
            self._ends.pool.end_gradients(copy.slot)

    def _content(self, copy: GradientCopy) -> Content:
        return Content(copy.layer, copy.expert, self._generation)
