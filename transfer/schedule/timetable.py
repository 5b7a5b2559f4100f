"""What the scheduler is asked and what it answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.transfer.copies import Copy, Fill
from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import NEVER


class CopyWindow(NamedTuple):
    """When a layer's copies may run; as in ``LayerCopies``."""

    ready_ns: int = 0
    deadline_ns: int = NEVER
    latest_ns: int = 0


ANY_TIME = CopyWindow()


@dataclass(frozen=True, slots=True, eq=False)
class LayerCopies:
    """The copies that one layer of one micro-step needs.

    home: int32 ``[E]``, each expert's rank. ready_ns, deadline_ns: from when on its slots may be
    filled, and when its compute needs them, on the clock by which micro-steps are estimated.
    latest_ns: until when compute would rather wait for a copy that misses the deadline than do
    without; by default not at all. value: by fill, what is lost without it (pairs the replica
    serves, say); equal by default.

    Raises InvalidInputError when these contradict each other.
    """

    layer: int
    fills: Sequence[Fill]
    home: NDArray[np.int32]
    ready_ns: int = 0
    deadline_ns: int = NEVER
    value: Sequence[int] | None = None
    latest_ns: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.ready_ns <= self.deadline_ns <= NEVER or self.latest_ns > NEVER:
            raise InvalidInputError(
                f"layer {self.layer}: its window must satisfy 0 <= ready <= deadline <= {NEVER} ns,"
                f" got {self.ready_ns} and {self.deadline_ns}, at the latest {self.latest_ns}"
            )
        if self.value is not None and (
            len(self.value) != len(self.fills) or min(self.value, default=0) < 0
        ):
            raise InvalidInputError(
                f"layer {self.layer}: needs one value of at least 0 for each of "
                f"{len(self.fills)} fills, got {list(self.value)}"
            )


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive chunks of ``copies[index]`` without a pause."""

    index: int
    first_chunk: int
    chunks: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Timetable:
    """Every copy's time and path. Equal on all ranks, as it follows from what all of them know.

    copies: in the order in which to issue them: by start. ``source`` is the rank that sends; where
        that is not the expert's home, its replica there has arrived by then (a relay).
    link: int64 ``[N]``, the ``Link`` of each. ticks: int64 ``[N, C]``, on that link's clock.
    dropped: (layer, fill) of replicas that cannot come in time, by layer as given.
    calendar: what the links carry afterwards.
    """

    copies: tuple[Copy, ...]
    link: NDArray[np.int64]
    ticks: NDArray[np.int64]
    dropped: tuple[tuple[int, Fill], ...]
    calendar: Calendar

    @classmethod
    def empty(cls, calendar: Calendar) -> "Timetable":
        """Nothing is to be copied."""
        ticks = np.zeros((0, calendar.links.chunks), np.int64)
        return cls((), np.zeros(0, np.int64), ticks, (), calendar)

    @property
    def start_ns(self) -> NDArray[np.int64]:
        """int64 ``[N]``."""
        return self._tick_ns() * self.ticks[:, 0]

    @property
    def end_ns(self) -> NDArray[np.int64]:
        """When each copy has arrived, int64 ``[N]``."""
        return self._tick_ns() * (self.ticks[:, -1] + 1)

    def pieces(self) -> list[Piece]:
        """All copies' chunks by start; where a copy is in pieces, a more urgent one overtakes."""
        found = [
            piece
            for index, (ticks, tick_ns) in enumerate(zip(self.ticks, self._tick_ns(), strict=True))
            for piece in _pieces(index, ticks, int(tick_ns))
        ]
        return sorted(found, key=lambda piece: (piece.start_ns, piece.index))

    def _tick_ns(self) -> NDArray[np.int64]:
        return self.calendar.tick_ns[self.link]


def _pieces(index: int, ticks: NDArray[np.int64], tick_ns: int) -> Iterator[Piece]:
    begins = [0, *(np.flatnonzero(np.diff(ticks) != 1) + 1).tolist()]
    for begin, end in zip(begins, [*begins[1:], ticks.size], strict=True):
        start_ns, end_ns = int(ticks[begin]) * tick_ns, int(ticks[end - 1] + 1) * tick_ns
        yield Piece(index, begin, end - begin, start_ns, end_ns)
