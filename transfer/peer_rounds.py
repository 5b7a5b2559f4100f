"""What one rank does in one round of peer copies, for weights and for gradients."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from foremoe.errors import TransferError
from foremoe.transfer.content import Content, read_stamp, write_stamp
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.gradients import GradientCopy, GradientInbox
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import SlotPool
from foremoe.transfer.statistics import StatisticsRecorder
from foremoe.transfer.ticket import mark

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
    def source(self) -> int | None:
        """The rank from which something comes in, if anything does."""

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

    def checksum(self, copy: Copy, tensors: Mapping[str, Tensor]) -> int:
        """Of what its home published, to go with ``copy``."""
        if copy.relay is None:
            return self.layout.checksum(tensors)
        return read_stamp(self.pool.weights(copy.relay.slot))[1]


class FillRound(PeerRound):
    """Weights: perhaps one expert of this rank goes out, perhaps one comes into a slot."""

    def __init__(
        self,
        ends: PeerEnds,
        outgoing: Copy | None,
        tensors: Mapping[str, Tensor] | None,
        incoming: Copy | None,
        generation: int,
        other_path: Callable[[Copy, int, TransferError], None],
    ) -> None:
        """tensors: to send; of a relay None, as an earlier round brings them."""
        self._ends = ends
        self._outgoing = outgoing
        self._tensors = tensors
        self._incoming = incoming
        self._generation = generation
        self._other_path = other_path
        self._checksum = torch.zeros(1, dtype=torch.int64) if ends.checksums else None
        self._landings: list[Landing] = []

    def ready(self) -> bool:
        pool, into, out = self._ends.pool, self._incoming, self._outgoing
        if into is not None and not pool.may_fill(into.slot, self._content(into)):
            return False
        return out is None or out.relay is None or pool.holds(out.relay.slot, self._content(out))

    def begin(self, wire: Wire) -> list[Work]:
        ends, works = self._ends, []
        if (copy := self._incoming) is not None:
            content = self._content(copy)
            ends.pool.begin_fill(copy.slot, content, wait_seconds=0.0)
            self._landings = [Landing(view) for view in ends.pool.weight_views(copy.slot).values()]
            into = [landing.host for landing in self._landings]
            if self._checksum is not None:
                into.append(self._checksum)
            works += wire.receive(into, copy.source, content)
        if (copy := self._outgoing) is not None:
            works += wire.send(self._messages(copy), copy.destination, self._content(copy))
        return works

    def end(self) -> int:
        self._end_loan()
        ends, copy = self._ends, self._incoming
        if copy is None:
            return 0
        content = self._content(copy)
        for landing in self._landings:
            landing.forward()
        if ends.pool.stamps:
            checksum = 0 if self._checksum is None else int(self._checksum.item())
            write_stamp(ends.pool.weights(copy.slot), content, checksum)
        ends.pool.end_fill(copy.slot, content, mark(ends.pool.device))
        ends.statistics.add_copy(Path.PEER, ends.layout.payload_bytes)
        return ends.layout.payload_bytes

    def give_up(self, error: TransferError) -> None:
        self._end_loan()
        if self._incoming is not None:
            self._other_path(self._incoming, self._generation, error)

    def _messages(self, copy: Copy) -> list[Tensor]:
        ends, tensors = self._ends, self._tensors
        if copy.relay is not None:
            views = ends.pool.lent(copy.relay.slot, self._content(copy))
            tensors = {name: view.cpu() for name, view in views.items()}
        assert tensors is not None, "what is no relay comes with its tensors"
        messages = list(tensors.values())
        if ends.checksums:
            messages.append(torch.tensor([ends.checksum(copy, tensors)]))
        return messages

    def _end_loan(self) -> None:
        if self._outgoing is not None and self._outgoing.relay is not None:
            content = self._content(self._outgoing)
            self._ends.pool.end_loan(self._outgoing.relay.slot, content)

    def source(self) -> int | None:
        return None if self._incoming is None else self._incoming.source

    def label(self) -> tuple[str, str, int]:
        return Path.PEER, *_name(self._incoming, self._outgoing)

    def _content(self, copy: Copy) -> Content:
        return copy.content(self._generation)


class GradientRound(PeerRound):
    """Gradients: perhaps one replica's slab goes home, perhaps one of an own expert arrives."""

    def __init__(
        self,
        ends: PeerEnds,
        outgoing: GradientCopy | None,
        incoming: tuple[GradientCopy, Tensor] | None,
        generation: int,
    ) -> None:
        self._ends = ends
        self._outgoing = outgoing
        self._incoming = incoming
        self._generation = generation
        self._landing: Landing | None = None

    def begin(self, wire: Wire) -> list[Work]:
        works: list[Work] = []
        if self._incoming is not None:
            copy, buffer = self._incoming
            self._landing = Landing(buffer)
            works += wire.receive([self._landing.host], copy.rank, self._content(copy))
        if self._outgoing is not None:
            copy = self._outgoing
            slab = self._ends.pool.gradients(copy.slot).cpu()
            works += wire.send([slab], copy.home, self._content(copy))
        return works

    def end(self) -> int:
        received = 0
        if self._incoming is not None and self._landing is not None:
            self._landing.forward()
            copy, buffer = self._incoming
            self._ends.inbox.arrive(copy, buffer, mark(self._ends.pool.device))
            self._ends.statistics.add_gradient(buffer.numel())
            received = buffer.numel()
        self._free_slot()
        return received

    def give_up(self, error: TransferError) -> None:
        self._ends.inbox.fail(error)
        self._free_slot()

    def source(self) -> int | None:
        return None if self._incoming is None else self._incoming[0].rank

    def label(self) -> tuple[str, str, int]:
        incoming = None if self._incoming is None else self._incoming[0]
        return "gradients", *_name(incoming, self._outgoing)

    def _free_slot(self) -> None:
        if self._outgoing is not None:
            self._ends.pool.end_gradients(self._outgoing.slot)

    def _content(self, copy: GradientCopy) -> Content:
        return Content(copy.layer, copy.expert, self._generation)


def _name(
    incoming: Copy | GradientCopy | None, outgoing: Copy | GradientCopy | None
) -> tuple[str, int]:
    """What a round does, and the layer of it."""
    parts = []
    if incoming is not None:
        parts.append(f"expert {incoming.expert} from rank {incoming.source}")
    if outgoing is not None:
        parts.append(f"expert {outgoing.expert} to rank {outgoing.destination}")
    copy = incoming or outgoing
    assert copy is not None, "a rank takes part in its rounds"
    return ", ".join(parts), copy.layer
