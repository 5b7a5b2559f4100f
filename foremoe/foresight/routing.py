"""The routing of one sequence, whatever carried it: the common result of all decoders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.histogram import expert_histogram


class Row(IntEnum):
    """What a row of expert ids is."""

    PRESENT = 0  # the experts that the rollout chose
    PADDING = 1  # no token of the sequence
    MISSING = 2  # a token whose experts nobody recorded


class FaultKind(StrEnum):
    """What may be wrong with a recording; each would silently skew a plan."""

    LAYER_NOT_CAPTURED = "layer not captured"
    NOTHING_CAPTURED = "nothing captured"
    ROWS_NOT_CAPTURED = "rows not captured"
    ROWS_PARTLY_CAPTURED = "rows captured in some layers only"
    GAP = "rows missing between pieces"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one sequence; ``layer`` is a global decoder layer id, None for all layers."""

    kind: FaultKind
    sequence: str
    rows: int
    layer: int | None = None

    def __str__(self) -> str:
        where = "" if self.layer is None else f", layer {self.layer}"
        return f"sequence {self.sequence!r}{where}: {self.kind} ({self.rows} rows)"


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Expert ids ``[tokens, layers, top_k]`` of one sequence, uint8, uint16 or int32.

    num_experts: E. layers: global decoder layer ids, ascending. rows: uint8 ``[tokens]``, a ``Row``
    each; the ids of rows that are not PRESENT mean nothing. start: position of the first row in the
    sequence; row i is the forward pass of token ``start + i``, so a sequence's last sampled token,
    which no rollout forwards, has no row. weight_versions: the policies that chose these experts,
    oldest first, where the carrier tells.
    """

    sequence: str
    ids: NDArray[Any]
    num_experts: int
    layers: tuple[int, ...]
    rows: NDArray[np.uint8]
    start: int = 0
    faults: tuple[Fault, ...] = ()
    weight_versions: tuple[str, ...] = ()

    @property
    def present(self) -> int:
        """Rows that count."""
        return int(np.count_nonzero(self.rows == Row.PRESENT))

    @property
    def lost_layers(self) -> tuple[int, ...]:
        """Layers that were not captured."""
        return tuple(fault.layer for fault in self.faults if fault.layer is not None)

    def of_the_same_model(self, other: "Routing") -> bool:
        """Whether both have the same layers, experts and experts per token."""
        shape, others = ((r.layers, r.num_experts, r.top_k) for r in (self, other))
        return shape == others

    def present_ids(self) -> NDArray[Any]:
        """Ids of the rows that count, ``[present, layers, top_k]``."""
        return self.ids if self.present == len(self.ids) else self.ids[self.rows == Row.PRESENT]

    @property
    def top_k(self) -> int:
        """Experts per token."""
        return int(self.ids.shape[2])

    def histogram(self) -> NDArray[np.uint32]:
        """Tokens per layer and expert, uint32 ``[layers, E]``, of the rows that count.

        Raises InvalidInputError, naming sequence and layer, when a layer was not captured: its
        zeros are no choice of expert 0. ``select`` the other layers to go on without it.
        """
        self.check_captured()
        return expert_histogram(self.ids, self.num_experts, self.rows)

    def check_captured(self) -> None:
        """Raises InvalidInputError, naming sequence and layer, when a layer was not captured."""
        for fault in self.faults:
            if fault.kind in (FaultKind.LAYER_NOT_CAPTURED, FaultKind.NOTHING_CAPTURED):
                raise InvalidInputError(f"{fault}; leave it out, or mend the capture")

    def select(self, layers: Sequence[int]) -> "Routing":
        """The same routing with only ``layers``.

        Raises InvalidInputError when one of them is not here.
        """
        chosen = tuple(layers)
        if chosen == self.layers:
            return self
        for layer in chosen:
            if layer not in self.layers:
                raise InvalidInputError(
                    f"sequence {self.sequence!r}: has no layer {layer}, only "
                    f"{', '.join(map(str, self.layers))}"
                )
        positions = [self.layers.index(layer) for layer in chosen]
        return replace(
            self,
            ids=np.ascontiguousarray(self.ids[:, positions]),
            layers=chosen,
            faults=tuple(f for f in self.faults if f.layer is None or f.layer in chosen),
        )
