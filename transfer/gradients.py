"""Replica gradients that arrive at the experts' home."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foremoe.errors import ExhaustedError, ForemoeError, TransferError
from foremoe.transfer.slab import SlabLayout, aligned_buffer


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

    gradients: float32 (float64 for float64 weights), valid until the next ``return_gradients`` or
        ``collect_gradients`` of the engine.
    """

    layer: int
    expert: int
    rank: int
    gradients: dict[str, Tensor]


class GradientInbox:
    """Buffers for gradients under way, and those that have arrived."""

    def __init__(self, layout: SlabLayout, limit_bytes: int | None) -> None:
        self.layout = layout
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._buffers = 0
        self._free: list[Tensor] = []
        self._lent: list[Tensor] = []
        self._expected = 0
        self._arrived: list[tuple[GradientCopy, Tensor]] = []
        self._error: ForemoeError | None = None

    def expect(self, copies: Sequence[GradientCopy]) -> list[Tensor]:
        """Buffers (uint8 slabs) for ``copies``, which must all arrive before ``collect`` returns.

        The buffers of the last collection are used again from now on.

        Raises ExhaustedError when the limit does not allow that many gradients under way.
        """
        with self._changed:
            self._free += self._lent
            self._lent = []
            new = max(0, len(copies) - len(self._free))
            needed = (self._buffers + new) * self.layout.nbytes
            if self._limit_bytes is not None and needed > self._limit_bytes:
                raise ExhaustedError(
                    f"gradients coming home need {needed} bytes but {self._limit_bytes} are left "
                    "beside the slot pool; raise the limit or collect gradients more often"
                )
            self._free += [aligned_buffer(self.layout.nbytes) for _ in range(new)]
            self._buffers += new
            self._expected += len(copies)
            return [self._free.pop() for _ in copies]

    def arrive(self, copy: GradientCopy, slab: Tensor) -> None:
        with self._changed:
            self._arrived.append((copy, slab))
            self._changed.notify_all()

    def fail(self, error: ForemoeError) -> None:
        """Some gradient will never arrive, or one sent from here was lost."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def collect(self, wait_seconds: float) -> list[ReturnedGradient]:
        """All gradients expected so far, ascending by (layer, expert, rank).

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
            self._free += self._lent
            self._lent = [slab for _, slab in self._arrived]
            arrived = sorted(
                self._arrived, key=lambda pair: (pair[0].layer, pair[0].expert, pair[0].rank)
            )
            self._arrived, self._expected = [], 0
            error, self._error = self._error, None
        if error is not None:
            raise error
        return [
            ReturnedGradient(copy.layer, copy.expert, copy.rank, self.layout.views(slab))
            for copy, slab in arrived
        ]
