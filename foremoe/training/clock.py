"""What time it is at each hook point of a micro-step, as all ranks of the group estimate alike.

Real clocks differ between ranks, so none of them may decide which copies are too late. Each rank
measures how long it takes from one hook point to the next, without what it waited for copies; when
weights change the ranks exchange the figures, and the shortest of each is the group's estimate: a
rank that waited for another one's copies took longer. From then on the passing of a hook point, in
the same order on all ranks, says what time it is.

On a CUDA device the host runs ahead of what it has enqueued, so there the device is measured, by
events.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from foremoe.transfer.schedule.links import NEVER
from foremoe.transfer.ticket import Ticket, moment
from foremoe.vocabulary import Stage

NEW_SHARE = 0.3  # of a later measurement
_STAGES = tuple(Stage)
_SETTLE_SECONDS = 300.0  # for a device to reach the end of a micro-step


class Point(IntEnum):
    """Where a layer needs its replicas, and where it is done with them."""

    FORWARD = 0
    FORWARD_DONE = 1
    BACKWARD = 2
    BACKWARD_DONE = 3


@dataclass(frozen=True, slots=True, eq=False)
class Pace:
    """How a micro-step of one stage passes.

    took_ns: int64 ``[4 L + 1]``, from each hook point to the next, to the micro-step's end. pairs:
    that a rank computes, over all layers.
    """

    took_ns: NDArray[np.int64]
    pairs: int

    @property
    def total_ns(self) -> int:
        return int(self.took_ns.sum())

    @property
    def pair_ns(self) -> int:
        """What one pair costs, with everything that is done for it."""
        return self.total_ns // max(1, self.pairs)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Up to the hook point of this index, without waits."""

    index: int
    begun: Ticket
    ended: Ticket


@dataclass(slots=True, eq=False)
class _Run:
    """A micro-step as it was."""

    stretches: list[_Stretch] = field(default_factory=list)
    pairs: int = 0

    def took(self, layers: int) -> NDArray[np.float64]:
        """Seconds from each hook point to the next, and the pairs: ``[4 L + 2]``."""
        self.stretches[-1].ended.settle(_SETTLE_SECONDS, "a micro-step")
        took = np.zeros(4 * layers + 2)
        for one in self.stretches:
            took[one.index] += one.ended.seconds_since(one.begun)
        took[-1] = self.pairs
        return took


class MicroStepClock:
    """Measures this rank's micro-steps, and tells the group's time; 0 while there is no estimate.

    Layers are named by their position.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        """device: that computes."""
        self._layers = layers
        self._device = device
        self._paces: dict[Stage, Pace] = {}
        self._measured: dict[Stage, list[_Run]] = {stage: [] for stage in Stage}
        self.restart()

    def restart(self) -> None:
        """It is 0 again: no copies are under way."""
        self._begun_ns = self._ended_ns = self.now_ns = 0

    def begin(self, stage: Stage) -> None:
        """A micro-step begins."""
        self._stage = stage
        self._run = _Run()
        self._begun_ns = self.now_ns = self._ended_ns
        if pace := self._paces.get(stage):
            self._ended_ns = self._begun_ns + pace.total_ns
        self._since = moment(self._device)

    def reach(self, point: Point, position: int) -> None:
        """A hook point is passed."""
        index = self._index(point, position)
        self._add(index)
        if pace := self._paces.get(self._stage):
            self.now_ns = self._begun_ns + int(pace.took_ns[: index + 1].sum())

    def resume(self) -> None:
        """The time since the last hook point was spent waiting for copies."""
        self._since = moment(self._device)

    def end(self, pairs: int) -> None:
        """The micro-step has ended; ``pairs`` were computed here. Only these are measured."""
        self._add(4 * self._layers)
        self._run.pairs = pairs
        self._measured[self._stage].append(self._run)

    def due_ns(self, point: Point, position: int, micro_steps_ahead: int) -> int:
        """When a layer gets to ``point`` in this micro-step or a later one; NEVER if unknown."""
        pace = self._paces.get(self._stage)
        if pace is None:
            return NEVER
        begin_ns = self._begun_ns + micro_steps_ahead * pace.total_ns
        return begin_ns + int(pace.took_ns[: self._index(point, position) + 1].sum())

    def worth_ns(self, pairs: int) -> int:
        """How long a replica that serves ``pairs`` is worth waiting for."""
        pace = self._paces.get(self._stage)
        return 0 if pace is None else pairs * pace.pair_ns

    def take(self) -> NDArray[np.float64]:
        """What this rank measured since the last call, for ``settle``: ``[stages, 4 L + 2]``.

        Waits until the device is done with it; raises TransferError if that takes too long.
        """
        taken = np.zeros((len(_STAGES), 4 * self._layers + 2))
        for row, stage in zip(taken, _STAGES, strict=True):
            if runs := self._measured[stage]:
                row[:] = np.median([run.took(self._layers) for run in runs], axis=0)
        self._measured = {stage: [] for stage in Stage}
        return taken

    def settle(self, measured: Sequence[NDArray[np.float64]]) -> None:
        """Estimate by what each rank measured; all ranks call this with the same, by rank."""
        shortest = np.minimum.reduce(measured)
        for stage, row in zip(_STAGES, shortest, strict=True):
            if row[-1] <= 0:
                continue
            took = np.rint(1e9 * row[:-1]).astype(np.int64)
            if before := self._paces.get(stage):
                change = np.rint(NEW_SHARE * (took - before.took_ns)).astype(np.int64)
                took = before.took_ns + change
            self._paces[stage] = Pace(took, int(row[-1]))

    def _add(self, index: int) -> None:
        now = moment(self._device)
        self._run.stretches.append(_Stretch(index, self._since, now))
        self._since = now

    def _index(self, point: Point, position: int) -> int:
        if point <= Point.FORWARD_DONE:
            return 2 * position + point
        return 4 * self._layers - 2 * position + point - 4
