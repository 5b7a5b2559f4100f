"""Replica gradients that arrive at the experts' home."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import ForemoeError, TransferError
from foremoe.transfer.slab import SlabLayout, aligned_buffer
from foremoe.transfer.ticket import DONE, Ticket


@dataclass(frozen=True, slots=True)
class GradientCopy:
    """One gradient slab to move: from ``slot`` of the replica's ``rank`` to rank ``home``."""

    layer: int
    expert: int
    rank: int
    slot: int
    home: int


@dataclass(frozen=True, slots=True)
class ReturnedGradient:
    """What the replica on ``rank`` computed for one of this rank's own experts.

    gradients: float32 (float64 for float64 weights), valid while the sink runs.
    """

    layer: int
    expert: int
    rank: int
    gradients: dict[str, Tensor]


GradientSink = Callable[[Sequence[ReturnedGradient]], None]


class GradientInbox:
    """Buffers for gradients under way, taken when first needed, and those that have arrived."""

    def __init__(self, layout: SlabLayout, device: torch.device | None = None) -> None:
        self.layout = layout
        self._device = device
        self._changed = threading.Condition()
        self._free: list[Tensor] = []
        self._expected = 0
        self._arrived: list[tuple[GradientCopy, Tensor, Ticket]] = []
        self._error: ForemoeError | None = None

    def expect(self, copies: Sequence[GradientCopy]) -> list[Tensor]:
        """Buffers (uint8 slabs) for ``copies``, which ``collect`` then waits for."""
        with self._changed:
            new = max(0, len(copies) - len(self._free))
            self._free += [aligned_buffer(self.layout.nbytes, self._device) for _ in range(new)]
            self._expected += len(copies)
            return [self._free.pop() for _ in copies]

    def arrive(self, copy: GradientCopy, slab: Tensor, ticket: Ticket = DONE) -> None:
        """``ticket`` says when the device has the bytes; whoever takes them waits for it."""
        with self._changed:
            self._arrived.append((copy, slab, ticket))
            crash_point(CrashPoint.GRADIENTS_ARRIVED)
            self._changed.notify_all()

    def fail(self, error: ForemoeError) -> None:
        """Some gradient will never arrive, or one sent from here was lost."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def collect(self, sink: GradientSink, wait_seconds: float) -> None:
        """Hand all gradients expected so far to ``sink``, ascending by (layer, expert, rank).

        Raises TransferError when a gradient is lost or late.
        """
        deadline = time.monotonic() + wait_seconds
        with self._changed:
            while self._error is None and len(self._arrived) < self._expected:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TransferError(
                        f"{self._expected - len(self._arrived)} replica gradients did not come "
                        f"home within {wait_seconds} s; a rank of the group is late or lost"
                    )
                self._changed.wait(remaining)
            arrived, self._arrived, self._expected = self._arrived, [], 0
            error, self._error = self._error, None
        if error is not None:
            raise error
        arrived.sort(key=lambda one: (one[0].layer, one[0].expert, one[0].rank))
        for _, _, ticket in arrived:
            ticket.wait()
        if arrived:
            sink(
                [
                    ReturnedGradient(copy.layer, copy.expert, copy.rank, self.layout.views(slab))
                    for copy, slab, _ in arrived
                ]
            )
            crash_point(CrashPoint.GRADIENTS_HOME)
        with self._changed:
            self._free += [slab for _, slab, _ in arrived]
