"""The slot pool: preallocated memory for replicas, and the state each slot is in."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from foremoe.errors import ExhaustedError, ForemoeError, StaleGenerationError, TransferError
from foremoe.transfer.slab import SlabLayout, aligned_buffer


class SlotState(StrEnum):
    """FREE -> FILLING -> READY -> IN_USE -> (GRADS) -> FREE, and the shortcuts in ``EDGES``."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"
    IN_USE = "in use"
    GRADS = "grads"


FREE, FILLING, READY, IN_USE, GRADS = SlotState

EDGES = {
    (FREE, FILLING),
    (FILLING, READY),
    (FILLING, FREE),  # the copy broke off
    (FREE, READY),  # the expert is still here from an earlier micro-step
    (READY, IN_USE),
    (READY, FREE),  # the promise was abandoned
    (IN_USE, FREE),  # forward only
    (IN_USE, GRADS),
    (GRADS, FREE),
}


@dataclass(frozen=True, slots=True, order=True)
class SlotKey:
    """One slot of this rank."""

    layer: int
    slot: int


@dataclass(frozen=True, slots=True)
class Content:
    """What a slot's bytes are."""

    expert: int
    generation: int


@dataclass(slots=True)
class _Slot:
    weights: Tensor
    weight_views: dict[str, Tensor]
    gradients: Tensor | None
    gradient_views: dict[str, Tensor] | None
    state: SlotState = FREE
    content: Content | None = None
    error: ForemoeError | None = None
    gradients_dirty: bool = True
    uses: int = 0


class SlotPool:
    """R slots for each layer, all of one slab layout. Thread-safe; every wait has a deadline."""

    def __init__(
        self,
        layers: Sequence[int],
        spare_slots: int,
        layout: SlabLayout,
        training: bool,
        limit_bytes: int | None,
    ) -> None:
        """Raises ExhaustedError when the pool would exceed ``limit_bytes``."""
        self._lock = threading.Lock()
        self._changed = {layer: threading.Condition(self._lock) for layer in layers}
        gradient_layout = layout.gradient_layout() if training else None
        each = layout.nbytes + (gradient_layout.nbytes if gradient_layout else 0)
        self.nbytes = each * len(layers) * spare_slots
        if limit_bytes is not None and self.nbytes > limit_bytes:
            raise ExhaustedError(
                f"slot pool: {len(layers)} layers of {spare_slots} slots of {each} bytes need "
                f"{self.nbytes} bytes but the limit is {limit_bytes}; raise it or use fewer slots"
            )
        memory = aligned_buffer(self.nbytes)
        self._slots: dict[SlotKey, _Slot] = {}
        for layer in layers:
            for slot in range(spare_slots):
                block = memory[:each]
                memory = memory[each:]
                self._slots[SlotKey(layer, slot)] = _make_slot(block, layout, gradient_layout)

    def state(self, key: SlotKey) -> SlotState:
        with self._lock:
            return self._slots[key].state

    def weights(self, key: SlotKey) -> Tensor:
        """The slot's slab, uint8."""
        return self._slots[key].weights

    def weight_views(self, key: SlotKey) -> dict[str, Tensor]:
        return self._slots[key].weight_views

    def gradients(self, key: SlotKey) -> Tensor:
        """The slot's gradient slab, uint8; the pool must be a training one."""
        slab = self._slots[key].gradients
        assert slab is not None, "a pool without gradients has no gradient slabs"
        return slab

    def expect(self, key: SlotKey) -> None:
        """A new fill is queued for the slot: what became of an earlier one no longer matters."""
        with self._lock:
            self._slots[key].error = None

    def begin_fill(self, key: SlotKey, wait_seconds: float) -> Tensor:
        """Wait until the slot is free, then claim it; returns its slab to copy into."""
        with self._lock:
            self._wait([key], lambda slot: slot.state is FREE, wait_seconds, "become free")
            slot = self._move(key, FREE, FILLING)
            slot.content = None
            return slot.weights

    def end_fill(self, key: SlotKey, content: Content) -> None:
        with self._lock:
            self._move(key, FILLING, READY).content = content

    def undo_fill(self, key: SlotKey) -> None:
        """FILLING -> FREE (or stay FREE): the copy broke off, another path will try."""
        with self._lock:
            if self._slots[key].state is FILLING:
                self._move(key, FILLING, FREE)

    def fail(self, key: SlotKey, error: ForemoeError) -> None:
        """Record that what was promised for the slot did not come; whoever waits gets ``error``."""
        with self._lock:
            slot = self._slots[key]
            if slot.state is FILLING:
                self._move(key, FILLING, FREE)
            slot.error = error
            self._changed[key.layer].notify_all()

    def wait_settled(self, keys: Sequence[SlotKey], wait_seconds: float) -> None:
        """Wait until every slot is READY or its fill has failed.

        Raises TransferError at the deadline.
        """
        with self._lock:
            self._wait(
                keys, lambda s: s.state is READY or s.error is not None, wait_seconds, "fill"
            )

    def wait_free(self, keys: Sequence[SlotKey], wait_seconds: float) -> None:
        """Wait until every slot is FREE. Raises TransferError at the deadline."""
        with self._lock:
            self._wait(keys, lambda slot: slot.state is FREE, wait_seconds, "become free")

    def wait_all_free(self, wait_seconds: float) -> None:
        """Wait until the whole pool is FREE. Raises TransferError at the deadline."""
        self.wait_free(list(self._slots), wait_seconds)

    def use(self, kept: Sequence[SlotKey], promised: Mapping[SlotKey, Content]) -> None:
        """READY (FREE for ``kept`` contents, by way of READY) -> IN_USE, all or none.

        Raises the error with which a fill failed, or StaleGenerationError when a slot does not
        hold what was promised.
        """
        with self._lock:
            for key, content in promised.items():
                self._check_content(key, content)
            for key in kept:
                self._move(key, FREE, READY)
            for key in promised:
                self._move(key, READY, IN_USE).uses += 1

    def uses(self, key: SlotKey) -> int:
        """How often the slot was taken into use; tells one use from the next."""
        with self._lock:
            return self._slots[key].uses

    def clean_gradients(self, key: SlotKey) -> dict[str, Tensor]:
        """Zeroed gradient tensors of a slot in use; often the last sender has zeroed them."""
        slot = self._slots[key]
        assert slot.gradient_views is not None, "a pool without gradients has no gradient slabs"
        if slot.gradients_dirty:
            self.gradients(key).zero_()
        slot.gradients_dirty = True
        return slot.gradient_views

    def release(self, key: SlotKey) -> None:
        """IN_USE -> FREE; the content stays known."""
        with self._lock:
            self._move(key, IN_USE, FREE)

    def hold_gradients(self, key: SlotKey) -> None:
        """IN_USE -> GRADS: the gradient slab must not change until it is sent."""
        with self._lock:
            self._move(key, IN_USE, GRADS)

    def end_gradients(self, key: SlotKey) -> None:
        """Zero the gradient slab for the next use, then GRADS -> FREE."""
        slot = self._slots[key]
        self.gradients(key).zero_()
        slot.gradients_dirty = False
        with self._lock:
            self._move(key, GRADS, FREE)

    def abandon(self, key: SlotKey) -> None:
        """READY -> FREE (or stay FREE if the fill failed)."""
        with self._lock:
            if self._slots[key].state is READY:
                self._move(key, READY, FREE)

    def forget_all(self) -> None:
        """Void every slot's content; all must be free."""
        with self._lock:
            for key, slot in self._slots.items():
                assert slot.state is FREE, f"{key} is {slot.state} while its content is voided"
                slot.content, slot.error = None, None

    def _check_content(self, key: SlotKey, promised: Content) -> None:
        slot = self._slots[key]
        if slot.error is not None:
            raise slot.error
        if slot.content != promised:
            raise StaleGenerationError(
                f"layer {key.layer} slot {key.slot}: {promised} was promised but it holds "
                f"{slot.content}"
            )

    def _move(self, key: SlotKey, before: SlotState, after: SlotState) -> _Slot:
        slot = self._slots[key]
        assert (before, after) in EDGES
        assert slot.state is before, f"{key} is {slot.state}, not {before}: cannot become {after}"
        slot.state = after
        if after in (FREE, READY):
            self._changed[key.layer].notify_all()
        return slot

    def _wait(
        self,
        keys: Sequence[SlotKey],
        done: Callable[[_Slot], bool],
        wait_seconds: float,
        what: str,
    ) -> None:
        deadline = time.monotonic() + wait_seconds
        while waiting := [key for key in keys if not done(self._slots[key])]:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                key = waiting[0]
                raise TransferError(
                    f"layer {key.layer} slot {key.slot}: did not {what} within {wait_seconds} s "
                    f"(it is {self._slots[key].state}); a rank of the group is late or lost"
                )
            self._changed[waiting[0].layer].wait(remaining)


def _make_slot(block: Tensor, layout: SlabLayout, gradient_layout: SlabLayout | None) -> _Slot:
    weights = block[: layout.nbytes]
    gradients = block[layout.nbytes :] if gradient_layout else None
    views = gradient_layout.views(block[layout.nbytes :]) if gradient_layout else None
    return _Slot(weights, layout.views(weights), gradients, views)
