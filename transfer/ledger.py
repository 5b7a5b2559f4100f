"""What the whole group's slots hold and what was promised for them; equal on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError, NotReadyError
from foremoe.transfer.copies import EMPTY, Fill, assign_slots, check_wanted, held


@dataclass(slots=True, eq=False)
class Promise:
    """The replicas of one layer in one micro-step.

    placement: int32 ``[P, R]``, the expert promised in each slot, -1 for none.
    fills: the slots that need a copy; the others hold their expert already.
    """

    layer: int
    placement: NDArray[np.int32]
    fills: list[Fill]
    acquired: bool = False
    with_gradients: bool = False

    def slots_of(self, rank: int) -> list[tuple[int, int]]:
        """The (slot, expert) pairs promised on ``rank``, by slot."""
        return [(s, e) for s, e in enumerate(self.placement[rank].tolist()) if e != EMPTY]

    def filled_slots_of(self, rank: int) -> list[int]:
        return [fill.slot for fill in self.fills if fill.rank == rank]


class Ledger:
    """Content of all slots of the group and at most one open promise a layer.

    Changes only by calls that all ranks make in the same order with the same arguments.
    """

    def __init__(
        self, layers: Sequence[int], home: NDArray[np.int32], ranks: int, spare_slots: int
    ) -> None:
        self._row = {layer: row for row, layer in enumerate(layers)}
        self._shape = (ranks, spare_slots)
        self.home = home
        self._content = np.full((len(layers), ranks, spare_slots), EMPTY, np.int32)
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

    def open(self, layer: int, home: NDArray[np.int32], wanted: NDArray[np.int32]) -> Promise:
        """Promise ``wanted [P, R]`` for the layer's next micro-step.

        Raises InvalidInputError when homes or replicas are not valid, NotReadyError when the
        layer's last promise is still open; the ledger is then unchanged.
        """
        row = self.row(layer)
        if not np.array_equal(home, self.home[row]):
            raise InvalidInputError(
                f"layer {layer}: the plan was made for other homes than the experts have"
            )
        if wanted.shape != self._shape:
            raise InvalidInputError(
                f"layer {layer}: replicas must be [ranks, spare slots] = {list(self._shape)}, "
                f"got {list(wanted.shape)}"
            )
        if layer in self._open:
            raise NotReadyError(
                f"layer {layer}: its last promise is still open; release it, return its gradients "
                "or abandon it first"
            )
        check_wanted(wanted, self.home[row])
        content, fills = assign_slots(wanted, self._content[row])
        self._content[row] = content
        placement = np.where(held(content, wanted), content, np.int32(EMPTY)).astype(np.int32)
        self._open[layer] = Promise(layer, placement, fills)
        return self._open[layer]

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
        """The promise is kept or abandoned; the contents stay."""
        del self._open[layer]

    def waiting(self) -> list[Promise]:
        """Promises not acquired yet, in the order in which they were made."""
        return [promise for promise in self._open.values() if not promise.acquired]

    def in_use(self) -> list[int]:
        """Layers whose replicas are in use."""
        return [layer for layer, promise in self._open.items() if promise.acquired]

    def forget(self, home: NDArray[np.int32]) -> None:
        """Void all contents; experts live at ``home [L, E]`` from now on."""
        assert not self._open, "contents are voided while promises are open"
        self._content.fill(EMPTY)
        self.home = home
