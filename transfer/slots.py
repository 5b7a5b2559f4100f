"""The slot pool: preallocated memory for replicas, and the state each slot is in."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import ForemoeError, StaleGenerationError, TransferError
from foremoe.transfer.content import Content, erase_stamp, read_stamp
from foremoe.transfer.slab import SlabLayout, aligned_buffer
from foremoe.transfer.ticket import DONE, Ticket, mark


class SlotState(StrEnum):
    """FREE -> FILLING -> READY -> IN_USE -> (OWING -> GRADS) -> FREE, and ``EDGES``."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"
    IN_USE = "in use"
    OWING = "owing"
    GRADS = "grads"


FREE, FILLING, READY, IN_USE, OWING, GRADS = SlotState

EDGES = {
    (FREE, FILLING),
    (FILLING, READY),
    (FILLING, FREE),  # the copy broke off
    (FREE, READY),  # the expert is still here from an earlier use
    (READY, IN_USE),
    (READY, FREE),  # the promise was abandoned
    (IN_USE, FREE),  # nothing to return
    (IN_USE, OWING),  # its gradients are not home yet
    (OWING, READY),  # the expert stays, and goes on adding to them
    (OWING, GRADS),  # they go home
    (GRADS, FREE),
}
_CRASH_POINTS = {state: CrashPoint[f"SLOT_{state.name}"] for state in SlotState}


@dataclass(slots=True)
class _Slot:
    changed: threading.Condition  # on the pool's lock
    weights: Tensor
    weight_views: dict[str, Tensor]
    gradients: Tensor | None
    gradient_views: dict[str, Tensor] | None
    state: SlotState = FREE
    content: Content | None = None
    error: ForemoeError | None = None
    gradients_dirty: bool = True
    uses: int = 0
    filled: Ticket = DONE  # the last copy into the slot is there
    freed: Ticket = DONE  # the last use of the slot has ended
    loans: list[Content] = field(default_factory=list)  # what is still to be sent on from it
    sent_on: Ticket = DONE  # the last time it was sent on has ended

    def may_take(self, content: Content) -> bool:
        return self.state is FREE and all(lent == content for lent in self.loans)


class SlotPool:
    """A rank's slots, by number, all of one slab layout. Thread-safe; every wait has a deadline.

    On a CUDA device the states are the host's view: what a state says has been enqueued, and the
    slot's tickets keep the device in order. Stamps live in device memory, so only checksum mode
    reads them there (``stamps``); it waits for the device.
    """

    def __init__(
        self,
        slots: int,
        layout: SlabLayout,
        training: bool,
        checksums: bool,
        device: torch.device | None = None,
    ) -> None:
        """training: with gradient slabs. checksums: verify a slot's bytes when it is used."""
        self.device = torch.device("cpu") if device is None else device
        self.training = training
        self.stamps = checksums or self.device.type == "cpu"
        self._lock = threading.Lock()
        self._any_changed = threading.Condition(self._lock)
        self._layout = layout
        self._checksums = checksums
        self._dead: ForemoeError | None = None
        gradient_layout = layout.gradient_layout() if training else None
        each = slot_bytes(layout, training)
        self.nbytes = slots * each
        memory = aligned_buffer(self.nbytes, self.device)
        self._slots = [
            _make_slot(
                threading.Condition(self._lock),
                memory[start : start + each],
                layout,
                gradient_layout,
            )
            for start in range(0, self.nbytes, each)
        ]

    def state(self, slot: int) -> SlotState:
        with self._lock:
            return self._slots[slot].state

    def weights(self, slot: int) -> Tensor:
        """The slot's slab, uint8."""
        return self._slots[slot].weights

    def weight_views(self, slot: int) -> dict[str, Tensor]:
        return self._slots[slot].weight_views

    def gradients(self, slot: int) -> Tensor:
        """The slot's gradient slab, uint8; the pool must be a training one."""
        slab = self._slots[slot].gradients
        assert slab is not None, "a pool without gradients has no gradient slabs"
        return slab

    def expect(self, slot: int) -> None:
        """A new fill is queued for the slot: what became of an earlier one no longer matters."""
        with self._lock:
            self._slots[slot].error = None

    def may_fill(self, slot: int, content: Content) -> bool:
        """Whether ``begin_fill`` would not have to wait."""
        with self._lock:
            return self._slots[slot].may_take(content)

    def begin_fill(self, slot: int, content: Content, wait_seconds: float) -> Tensor:
        """Wait until the slot is free, then claim it for ``content``; returns its slab to fill.

        The current stream waits for the slot's last use. Raises TransferError at the deadline.
        """
        with self._lock:
            self._wait([slot], lambda s: s.may_take(content), wait_seconds, "become free")
            found = self._move(slot, FREE, FILLING)
            found.content = None
            found.freed.wait()
            found.sent_on.wait()
            if self.stamps:
                erase_stamp(found.weights)
            return found.weights

    def end_fill(self, slot: int, content: Content, ticket: Ticket = DONE) -> None:
        """FILLING -> READY; ``ticket`` says when the device has the bytes."""
        with self._lock:
            found = self._move(slot, FILLING, READY)
            found.content, found.filled = content, ticket

    def undo_fill(self, slot: int) -> None:
        """FILLING -> FREE (or stay FREE): the copy broke off, another path will try."""
        with self._lock:
            if self._slots[slot].state is FILLING:
                self._move(slot, FILLING, FREE)

    def fail(self, slot: int, error: ForemoeError) -> None:
        """Record that what was promised for the slot did not come; whoever waits gets ``error``."""
        with self._lock:
            if self._slots[slot].state is FILLING:
                self._move(slot, FILLING, FREE)
            self._slots[slot].error = error
            self._slots[slot].changed.notify_all()

    def fail_all(self, error: ForemoeError) -> None:
        """Nothing will come any more: every wait, now and later, ends with ``error``."""
        with self._lock:
            self._dead = self._dead or error
            for slot in self._slots:
                slot.changed.notify_all()

    def wait_settled(self, slots: Sequence[int], wait_seconds: float) -> None:
        """Wait until every slot is READY or its fill has failed.

        Raises TransferError at the deadline.
        """
        with self._lock:
            self._wait(
                slots, lambda s: s.state is READY or s.error is not None, wait_seconds, "fill"
            )

    def wait_kept(self, slots: Sequence[int], wait_seconds: float) -> None:
        """Wait until every slot may be used again: FREE or OWING. TransferError at the deadline."""
        with self._lock:
            self._wait(slots, lambda s: s.state in (FREE, OWING), wait_seconds, "become free")

    def wait_any_fillable(self, fills: Mapping[int, Content], wait_seconds: float) -> None:
        """Return when a slot may take its content, or after ``wait_seconds``; at once for none."""
        with self._lock:
            if fills:
                self._any_changed.wait_for(
                    lambda: any(self._slots[slot].may_take(fills[slot]) for slot in fills),
                    wait_seconds,
                )

    def wait_all_free(self, wait_seconds: float) -> None:
        """Wait until the whole pool is FREE, nothing lent. Raises TransferError at the deadline."""
        with self._lock:
            slots = range(len(self._slots))
            self._wait(
                slots, lambda s: s.state is FREE and not s.loans, wait_seconds, "become free"
            )

    def holds(self, slot: int, content: Content) -> bool:
        """Whether a copy has brought ``content`` and nothing has replaced it."""
        with self._lock:
            return self._slots[slot].content == content

    def lend(self, slot: int, content: Content) -> None:
        """``content`` is to be sent on from the slot; nothing replaces it before ``end_loan``."""
        with self._lock:
            self._slots[slot].loans.append(content)

    def lent(self, slot: int, content: Content) -> dict[str, Tensor]:
        """The tensors of a loan; the current stream waits for them.

        Raises TransferError when the slot does not hold ``content``: its copy did not come.
        """
        with self._lock:
            found = self._slots[slot]
            if found.content != content:
                raise TransferError(f"slot {slot}: {content} did not come, and cannot be sent on")
            found.filled.wait()
            return found.weight_views

    def end_loan(self, slot: int, content: Content) -> None:
        """It was sent on, or never will be."""
        with self._lock:
            self._slots[slot].loans.remove(content)
            self._notify(self._slots[slot])

    def sent_on(self, slot: int, ticket: Ticket) -> None:
        """Its content is sent on once ``ticket`` is done."""
        with self._lock:
            self._slots[slot].sent_on = ticket

    def use(self, kept: Collection[int], promised: Mapping[int, Content]) -> None:
        """READY (FREE or OWING for ``kept``, by way of READY) -> IN_USE, all or none.

        The current stream waits for the copies. Raises the error with which a fill failed, or as
        ``check``.
        """
        for slot, content in promised.items():
            found = self._slots[slot]
            if found.error is not None:
                raise found.error
            found.filled.wait()
            found.freed.wait()  # gradients that went home are zeroed beside compute
            self.check(slot, content)
        with self._lock:
            for slot in kept:
                self._move(slot, OWING if self._slots[slot].state is OWING else FREE, READY)
            for slot in promised:
                self._move(slot, READY, IN_USE).uses += 1

    def check(self, slot: int, promised: Content) -> None:
        """Raise StaleGenerationError unless a settled slot holds ``promised`` and is stamped so.

        With checksums, raises TransferError when its bytes are not those its home published.
        """
        found = self._slots[slot]
        stamped, checksum = read_stamp(found.weights) if self.stamps else (found.content, 0)
        if not found.content == stamped == promised:
            raise StaleGenerationError(
                f"slot {slot}: {promised} was promised but it holds {found.content}, stamped "
                f"{stamped}"
            )
        if self._checksums and self._layout.checksum(found.weight_views) != checksum:
            raise TransferError(
                f"slot {slot}: the bytes of {promised} are not those its home published; they "
                "were changed under way or in memory"
            )

    def uses(self, slot: int) -> int:
        """How often the slot was taken into use; tells one use from the next."""
        with self._lock:
            return self._slots[slot].uses

    def gradient_views(self, slot: int, keep: bool) -> dict[str, Tensor]:
        """Gradient tensors of a slot in use, zeroed unless ``keep``; senders leave them zeroed."""
        found = self._slots[slot]
        assert found.gradient_views is not None, "a pool without gradients has no gradient slabs"
        if found.gradients_dirty and not keep:
            self.gradients(slot).zero_()
        found.gradients_dirty = True
        return found.gradient_views

    def release(self, slot: int, owing: bool) -> None:
        """IN_USE -> FREE, or OWING if its gradients must still go home; the content stays known."""
        with self._lock:
            self._slots[slot].freed = mark(self.device)
            self._move(slot, IN_USE, OWING if owing else FREE)

    def hold_gradients(self, slot: int) -> None:
        """OWING -> GRADS: the gradient slab must not change until it is sent."""
        with self._lock:
            self._move(slot, OWING, GRADS)

    def end_gradients(self, slot: int) -> None:
        """Zero the gradient slab for the next use, then GRADS -> FREE."""
        self.gradients(slot).zero_()
        self._slots[slot].gradients_dirty = False
        with self._lock:
            self._slots[slot].freed = mark(self.device)
            self._move(slot, GRADS, FREE)

    def abandon(self, slot: int) -> None:
        """READY -> FREE (or stay FREE if the fill failed)."""
        with self._lock:
            if self._slots[slot].state is READY:
                self._slots[slot].freed = self._slots[slot].filled
                self._move(slot, READY, FREE)

    def forget_all(self) -> None:
        """Void every slot's content; all must be free."""
        with self._lock:
            for number, slot in enumerate(self._slots):
                assert slot.state is FREE, f"slot {number} is {slot.state} while it is voided"
                slot.content, slot.error = None, None

    def _move(self, slot: int, before: SlotState, after: SlotState) -> _Slot:
        found = self._slots[slot]
        assert (before, after) in EDGES
        assert found.state is before, f"slot {slot} is {found.state}, not {before}: not {after}"
        found.state = after
        crash_point(_CRASH_POINTS[after])
        if after in (FREE, READY, OWING):
            self._notify(found)
        return found

    def _notify(self, slot: _Slot) -> None:
        slot.changed.notify_all()
        self._any_changed.notify_all()

    def _wait(
        self,
        slots: Sequence[int],
        done: Callable[[_Slot], bool],
        wait_seconds: float,
        what: str,
    ) -> None:
        """For the last slot first, as it is the last to come: who waits is woken least often."""
        deadline = time.monotonic() + wait_seconds
        for number in reversed(slots):
            slot = self._slots[number]
            while not done(slot):
                if self._dead is not None:
                    raise self._dead
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TransferError(
                        f"slot {number}: did not {what} within {wait_seconds} s (it is "
                        f"{slot.state}); a rank of the group is late or lost"
                    )
                slot.changed.wait(remaining)


def slot_bytes(layout: SlabLayout, training: bool) -> int:
    """Memory of one slot: weights, and gradients if it trains."""
    return layout.nbytes + (layout.gradient_layout().nbytes if training else 0)


def _make_slot(
    changed: threading.Condition,
    block: Tensor,
    layout: SlabLayout,
    gradient_layout: SlabLayout | None,
) -> _Slot:
    weights = block[: layout.nbytes]
    gradients = block[layout.nbytes :] if gradient_layout else None
    views = gradient_layout.views(block[layout.nbytes :]) if gradient_layout else None
    return _Slot(changed, weights, layout.views(weights), gradients, views)
