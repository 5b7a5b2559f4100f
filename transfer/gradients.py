"""Replica gradients that arrive at the experts' home."""

import threading
import time
from collections import defaultdict
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
    """One gradient slab to move: from ``slot`` of the replica's ``rank`` to rank ``home``.

    more: others of this expert follow in a later batch.
    """

    layer: int
    expert: int
    rank: int
    slot: int
    home: int
    more: bool = False

    @property
    def source(self) -> int:
        return self.rank

    @property
    def destination(self) -> int:
        return self.home


@dataclass(frozen=True, slots=True)
class ReturnedGradient:
    """What the replica on ``rank`` computed for one of this rank's own experts.

    gradients: float32 (float64 for float64 weights), the sink's to change while it runs. more:
    others of the same sum come in a later call, for want of memory; it is not to be rounded before.
    """

    layer: int
    expert: int
    rank: int
    gradients: dict[str, Tensor]
    more: bool = False


GradientSink = Callable[[Sequence[ReturnedGradient]], None]
_Arrived = tuple[GradientCopy, Tensor, Ticket]


class GradientInbox:
    """Buffers for gradients under way, taken when first needed, and those that have arrived."""

    def __init__(self, layout: SlabLayout, device: torch.device | None = None) -> None:
        self.layout = layout
        self._device = device
        self._changed = threading.Condition()
        self._free: list[Tensor] = []
        # Where they will be, by layer in the order in which they were sent.
        self._expected: dict[int, set[int]] = {}
        self._arrived = defaultdict[int, list[_Arrived]](list)
        self._error: ForemoeError | None = None

    def expect(self, copies: Sequence[GradientCopy]) -> dict[GradientCopy, Tensor]:
        """Buffers (uint8 slabs) for ``copies``, which ``collect`` then waits for."""
        with self._changed:
            new = max(0, len(copies) - len(self._free))
            self._free += [aligned_buffer(self.layout.nbytes, self._device) for _ in range(new)]
            into = {copy: self._free.pop() for copy in copies}
            for copy, slab in into.items():
                self._expected.setdefault(copy.layer, set()).add(slab.data_ptr())
            return into

    def arrive(self, copy: GradientCopy, slab: Tensor, ticket: Ticket = DONE) -> None:
        """``ticket`` says when the device has the bytes; whoever takes them waits for it.

        What is not expected any more, because it was given up, is not kept.
        """
        with self._changed:
            if slab.data_ptr() not in self._expected.get(copy.layer, ()):
                self._free.append(slab)
                return
            self._arrived[copy.layer].append((copy, slab, ticket))
            crash_point(CrashPoint.GRADIENTS_ARRIVED)
            self._changed.notify_all()

    def fail(self, error: ForemoeError) -> None:
        """Some gradient will never arrive, or one sent from here was lost."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def collect(self, sink: GradientSink, wait_seconds: float) -> None:
        """Hand all gradients expected so far to ``sink``, those of one layer at a time.

        Layers come in the order in which they were sent, so that one is added while the next one is
        on its way; inside a layer they ascend by (expert, rank). Raises TransferError when a
        gradient is lost or late; none is expected then any more.
        """
        deadline = time.monotonic() + wait_seconds
        while (layer := next(iter(self._expected), None)) is not None:
            arrived = self._wait(layer, deadline, wait_seconds)
            arrived.sort(key=lambda one: (one[0].expert, one[0].rank))
            for _, _, ticket in arrived:
                ticket.wait()
            sink(
                [
                    ReturnedGradient(
                        copy.layer, copy.expert, copy.rank, self.layout.views(slab), copy.more
                    )
                    for copy, slab, _ in arrived
                ]
            )
            crash_point(CrashPoint.GRADIENTS_HOME)
            with self._changed:
                self._free += [slab for _, slab, _ in arrived]
        self._raise_error()

    def _wait(self, layer: int, deadline: float, wait_seconds: float) -> list[_Arrived]:
        """All that is expected of a layer."""
        with self._changed:
            while self._error is None and len(self._arrived[layer]) < len(self._expected[layer]):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    expected = sum(map(len, self._expected.values()))
                    missing = expected - sum(map(len, self._arrived.values()))
                    self._error = TransferError(
                        f"{missing} replica gradients did not come home within {wait_seconds} s; "
                        "a rank of the group is late or lost"
                    )
                    break
                self._changed.wait(remaining)
        self._raise_error()
        with self._changed:
            del self._expected[layer]
            return self._arrived.pop(layer)

    def _raise_error(self) -> None:
        with self._changed:
            error, self._error = self._error, None
            if error is not None:
                self._expected.clear()
                self._free += [slab for arrived in self._arrived.values() for _, slab, _ in arrived]
                self._arrived.clear()
                raise error
