"""A recorded routing trace: the experts of every token of many sequences, in one npz file.

Fields:

* ``experts`` uint8, uint16 or int32 ``[tokens, layers, top_k]``
* ``offsets`` int64 ``[sequences + 1]``; sequence i is rows ``offsets[i]:offsets[i + 1]``
* ``num_experts`` an integer
* ``layer_ids`` int32 ``[layers]``, may be missing: global decoder layer ids, ascending
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.histogram import ID_DTYPES, expert_histogram, first_repeat
from foremoe.limits import MAX_EXPERTS, check_range
from foremoe.planner.npz import read_npz

FIELDS = ("experts", "offsets", "num_experts")
OPTIONAL_FIELDS = ("layer_ids",)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Expert ids ``experts [tokens, layers, top_k]`` and where each sequence begins and ends.

    layer_ids: the layers' global decoder layer ids, ascending. name: in messages.
    """

    experts: NDArray[Any]
    offsets: NDArray[np.int64]
    num_experts: int
    layer_ids: tuple[int, ...]
    name: str = "trace"

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    @property
    def layers(self) -> int:
        return int(self.experts.shape[1])

    def histograms(self) -> NDArray[np.uint32]:
        """Tokens per sequence, layer and expert: uint32 ``[sequences, layers, experts]``.

        Raises InvalidInputError for an id outside ``[0, num_experts)`` and for a token that names
        an expert twice in a layer.
        """
        histograms = np.zeros((self.sequences, self.layers, self.num_experts), np.uint32)
        for sequence in range(self.sequences):
            rows = slice(int(self.offsets[sequence]), int(self.offsets[sequence + 1]))
            where = f"{self.name}: sequence {sequence}"
            try:
                histograms[sequence] = expert_histogram(self.experts[rows], self.num_experts)
            except InvalidInputError as error:
                raise InvalidInputError(f"{where}: {error}") from None
            found = first_repeat(self.experts[rows], self.num_experts)
            if found is not None:
                token, layer = found
                raise InvalidInputError(
                    f"{where}: token {token}, layer {self.layer_ids[layer]} names an expert twice: "
                    f"{self.experts[rows][token, layer].tolist()}; a router picks "
                    f"{self.experts.shape[2]} different ones, record it anew"
                )
        return histograms


def load_trace(path: Path) -> Trace:
    """Read and check a trace; ids are checked when they are counted.

    Raises InvalidInputError if the file cannot be read, is not an npz of plain arrays, misses a
    field or has another one, or if a shape, type or offset is wrong.
    """
    return _trace(path, read_npz(path))


def save_trace(path: Path, trace: Trace) -> None:
    """Write what ``load_trace`` reads; raises InvalidInputError if ``path`` cannot be written."""
    try:
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                experts=trace.experts,
                offsets=trace.offsets,
                num_experts=np.array(trace.num_experts),
                layer_ids=np.array(trace.layer_ids, np.int32),
            )
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error


def _trace(path: Path, fields: Mapping[str, NDArray[Any]]) -> Trace:
    expected = f"a trace has the fields {', '.join(FIELDS)}"
    for name in FIELDS:
        if name not in fields:
            raise InvalidInputError(f"{path}: field {name} is missing; {expected}")
    for name in fields:
        if name not in FIELDS + OPTIONAL_FIELDS:
            raise InvalidInputError(f"{path}: unknown field {name}; {expected}")
    experts, offsets, num_experts = (fields[name] for name in FIELDS)
    if experts.ndim != 3 or experts.dtype not in ID_DTYPES or 0 in experts.shape[1:]:
        raise InvalidInputError(
            f"{path}: experts must be uint8, uint16 or int32 [tokens, layers, top_k], "
            f"got {experts.dtype} {list(experts.shape)}"
        )
    if num_experts.size != 1 or num_experts.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{path}: num_experts must be one integer, "
            f"got {num_experts.dtype} {list(num_experts.shape)}"
        )
    check_range(int(num_experts.item()), 1, MAX_EXPERTS, f"{path}: num_experts")
    _check_offsets(path, offsets, len(experts))
    layer_ids = _layer_ids(path, fields.get("layer_ids"), experts.shape[1])
    return Trace(experts, offsets, int(num_experts.item()), layer_ids, str(path))


def _layer_ids(path: Path, given: NDArray[Any] | None, layers: int) -> tuple[int, ...]:
    if given is None:
        return tuple(range(layers))
    if given.shape != (layers,) or given.dtype != np.int32:
        raise InvalidInputError(
            f"{path}: layer_ids must be int32 [{layers}], one for each layer of experts, "
            f"got {given.dtype} {list(given.shape)}"
        )
    (wrong,) = np.nonzero(np.diff(given, prepend=-1) <= 0)
    if wrong.size:
        raise InvalidInputError(
            f"{path}: layer_ids must be 0 or more and ascend, but number {wrong[0]} is "
            f"{given[wrong[0]]}; sort them, and the layers of experts with them"
        )
    return tuple(given.tolist())


def _check_offsets(path: Path, offsets: NDArray[np.int64], tokens: int) -> None:
    if offsets.ndim != 1 or offsets.dtype != np.int64 or len(offsets) < 2:
        raise InvalidInputError(
            f"{path}: offsets must be int64 [sequences + 1] with at least one sequence, "
            f"got {offsets.dtype} {list(offsets.shape)}"
        )
    if offsets[0] != 0 or offsets[-1] != tokens:
        raise InvalidInputError(
            f"{path}: offsets must run from 0 to {tokens} tokens, got {offsets[0]} to {offsets[-1]}"
        )
    steps = np.diff(offsets)
    if np.any(steps < 0):
        raise InvalidInputError(f"{path}: offsets fall at sequence {int(np.argmax(steps < 0))}")
