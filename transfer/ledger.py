"""What the whole group's slots hold, owe and were promised for; equal on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError, NotReadyError
from foremoe.transfer.copies import EMPTY, Fill, assign_slots, check_wanted, held
from foremoe.transfer.gradients import GradientCopy

NO_LAYER = -1


@dataclass(slots=True, eq=False)
class Promise:
    """The replicas of one layer for one use.

    first_slot: number of the frame's first slot. placement: int32 ``[P, R]``, the expert promised
    in each slot of the frame, -1 for none; serving: bool ``[P, R]``, whether it may get tokens.
    fills: the slots that need a copy; the others hold their expert already. before: int32
    ``[P, R]``, what the frame held until now.
    """

    layer: int
    first_slot: int
    placement: NDArray[np.int32]
    serving: NDArray[np.bool_]
    fills: list[Fill]
    before: NDArray[np.int32]
    acquired: bool = False
    with_gradients: bool = False

    def slots_of(self, rank: int) -> list[tuple[int, int]]:
        """The (slot, expert) pairs promised on ``rank``, by slot."""
        row = enumerate(self.placement[rank].tolist(), start=self.first_slot)
        return [(slot, expert) for slot, expert in row if expert != EMPTY]

    def serves(self, rank: int, slot: int) -> bool:
        """Whether the replica in ``slot`` of ``rank`` may get tokens."""
        return bool(self.serving[rank, slot - self.first_slot])

    def filled_slots_of(self, rank: int) -> list[int]:
        return [fill.slot for fill in self.fills if fill.rank == rank]


class Ledger:
    """Frames of R slots on each rank, each serving one layer at a time; one promise a layer.

    As many frames as layers: each layer keeps its own. Fewer: a layer without a frame takes the one
    that was closed longest ago. Changes only by calls that all ranks make in the same order with
    the same arguments.
    """

    def __init__(
        self,
        layers: Sequence[int],
        home: NDArray[np.int32],
        ranks: int,
        spare_slots: int,
        frames: int,
    ) -> None:
        self._row = {layer: row for row, layer in enumerate(layers)}
        self._shape = (ranks, spare_slots)
        self.home = home.copy()
        self._frame_layer = [NO_LAYER] * frames
        self._unused = list(range(frames))  # frames without an open promise, oldest first
        self._content = np.full((frames, ranks, spare_slots), EMPTY, np.int32)
        self._owing = np.zeros((frames, ranks, spare_slots), np.bool_)
        self._open: dict[int, Promise] = {}

    def home_of(self, layer: int) -> NDArray[np.int32]:
        """Home rank of each expert of ``layer``: int32 ``[E]``."""
        row: NDArray[np.int32] = self.home[self.row(layer)]
        return row

    def row(self, layer: int) -> int:
        """Position of ``layer``. Raises InvalidInputError when the engine does not serve it."""
        if layer not in self._row:
            raise InvalidInputError(f"layer {layer}: this engine serves {list(self._row)}")
        return self._row[layer]

    def can_open(self, layer: int) -> bool:
        """Whether a promise for ``layer`` is possible now."""
        return layer not in self._open and bool(self._unused)

    def open(
        self,
        layer: int,
        home: NDArray[np.int32],
        wanted: NDArray[np.int32],
        serving: NDArray[np.bool_] | None,
    ) -> tuple[Promise, list[GradientCopy]]:
        """Promise ``wanted [P, R]`` for the layer's next use.

        serving: bool ``[P, R]``, which of them may get tokens; None for all. One that gets none
        stays where it is, but is not copied. Also returns the gradients that must leave the slots
        to fill, by (rank, slot).

        Raises InvalidInputError when homes or replicas are not valid, NotReadyError when the
        layer's last promise, or too many others, are still open; the ledger is then unchanged.
        """
        row = self.row(layer)
        if not np.array_equal(home, self.home[row]):
            raise InvalidInputError(
                f"layer {layer}: the plan was made for other homes than the experts have"
            )
        if wanted.shape != self._shape or wanted.dtype != np.int32:
            raise InvalidInputError(
                f"layer {layer}: replicas must be int32 [ranks, spare slots] = "
                f"{list(self._shape)}, got {wanted.dtype} {list(wanted.shape)}"
            )
        if layer in self._open:
            raise NotReadyError(
                f"layer {layer}: its last promise is still open; release it or abandon it first"
            )
        if not self._unused:
            raise NotReadyError(
                f"layer {layer}: all slots are promised to layers {list(self._open)}; release one"
            )
        if serving is not None and serving.shape != self._shape:
            raise InvalidInputError(
                f"layer {layer}: pairs must be [ranks, spare slots] = {list(self._shape)}, "
                f"got {list(serving.shape)}"
            )
        check_wanted(wanted, self.home[row])
        frame, evicted = self._take_frame(layer)
        content = self._content[frame].copy()
        if serving is not None:
            wanted = np.where(serving | held(wanted, content), wanted, np.int32(EMPTY))
        first = frame * self._shape[1]
        after, fills = assign_slots(wanted, content, first)
        placement = np.where(held(after, wanted), after, np.int32(EMPTY)).astype(np.int32)
        serves = placement != EMPTY
        if serving is not None:
            serves = held(after, np.where(serving, wanted, np.int32(EMPTY)))
        overwritten = self._owing[frame] & (after != content)
        evicted += [self._settle(frame, *place) for place in np.argwhere(overwritten).tolist()]
        self._content[frame] = after
        promise = Promise(layer, first, placement, serves, fills, content)
        self._open[layer] = promise
        return promise, evicted

    def drop(self, layer: int, fill: Fill) -> None:
        """One of the promise's fills does not happen: its slot keeps what it held before."""
        promise = self._open[layer]
        place = fill.slot - promise.first_slot
        frame = self._frame_layer.index(layer)
        self._content[frame, fill.rank, place] = promise.before[fill.rank, place]
        promise.placement[fill.rank, place] = EMPTY
        promise.serving[fill.rank, place] = False
        promise.fills.remove(fill)

    def promise(self, layer: int) -> Promise:
        """The layer's open promise. Raises NotReadyError when there is none."""
        self.row(layer)
        if layer not in self._open:
            raise NotReadyError(f"layer {layer}: nothing is promised; call promise first")
        return self._open[layer]

    def acquired(self, layer: int) -> Promise:
        """The layer's promise, which must be in use. Raises NotReadyError otherwise."""
        promise = self.promise(layer)
        if not promise.acquired:
            raise NotReadyError(f"layer {layer}: its replicas are promised but not acquired")
        return promise

    def close(self, layer: int) -> None:
        """The promise is kept or abandoned; the contents stay, with gradients if they have any."""
        promise = self._open.pop(layer)
        frame = self._frame_layer.index(layer)
        self._unused.append(frame)
        if promise.with_gradients:
            self._owing[frame] |= promise.serving

    def owes(self, slot: int, rank: int) -> bool:
        """Whether a replica's gradients are still in its slot."""
        frame, place = divmod(slot, self._shape[1])
        return bool(self._owing[frame, rank, place])

    @property
    def owing(self) -> list[int]:
        """Layers with gradients that are not on their way home."""
        frames = np.flatnonzero(self._owing.any(axis=(1, 2))).tolist()
        return [self._frame_layer[frame] for frame in frames]

    def settle(self, layer: int, staying: NDArray[np.int32] | None = None) -> list[GradientCopy]:
        """The gradients that the layer's slots owe, by (rank, slot); now they go home.

        staying: int32 ``[P, R]``, experts whose replicas will add to theirs, by rank.
        """
        if layer not in self._frame_layer:
            return []
        frame = self._frame_layer.index(layer)
        owing = self._owing[frame]
        if staying is not None:
            owing = owing & ~held(self._content[frame], staying)
        places = np.argwhere(owing).tolist()
        return [self._settle(frame, rank, place) for rank, place in places]

    def waiting(self) -> list[Promise]:
        """Promises not acquired yet, in the order in which they were made."""
        return [promise for promise in self._open.values() if not promise.acquired]

    def in_use(self) -> list[int]:
        """Layers whose replicas are in use."""
        return [layer for layer, promise in self._open.items() if promise.acquired]

    def check_idle(self) -> None:
        """Raise NotReadyError while replicas are in use or owe gradients."""
        if in_use := self.in_use():
            raise NotReadyError(
                f"layers {in_use}: replicas are in use; release them before weights change"
            )
        if owing := self.owing:
            raise NotReadyError(
                f"layers {owing}: gradients are not home, so weights must not change yet"
            )

    def forget(self, home: NDArray[np.int32]) -> None:
        """Void all contents; experts live at ``home [L, E]`` from now on."""
        assert not self._open, "contents are voided while promises are open"
        assert not self._owing.any(), "contents are voided while they owe gradients"
        self._content.fill(EMPTY)
        self.home = home.copy()

    def _take_frame(self, layer: int) -> tuple[int, list[GradientCopy]]:
        """The frame for a layer, and the gradients another layer left there."""
        if layer in self._frame_layer:
            frame = self._frame_layer.index(layer)
            self._unused.remove(frame)
            return frame, []
        frame = self._unused.pop(0)
        evicted = self.settle(self._frame_layer[frame])
        self._frame_layer[frame] = layer
        self._content[frame] = EMPTY
        return frame, evicted

    def _settle(self, frame: int, rank: int, place: int) -> GradientCopy:
        self._owing[frame, rank, place] = False
        layer, expert = self._frame_layer[frame], int(self._content[frame, rank, place])
        slot = frame * self._shape[1] + place
        return GradientCopy(layer, expert, rank, slot, int(self.home_of(layer)[expert]))
