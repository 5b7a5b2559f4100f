"""From a carrier's raw ids to a ``Routing``: layers named, rows told apart, faults found.

A router picks ``top_k`` different experts. A row of a layer that names one expert only was never
written by a router: engines start from zeroed buffers, and kernels that bypass the capture leave
them so (vLLM issue 54730: monolithic kernels returned zeros for every layer). Counting such rows
would make expert 0 look hot.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.histogram import flat_rows, largest_id
from foremoe.foresight.model import MoeModel
from foremoe.foresight.routing import Fault, FaultKind, Routing, Row
from foremoe.planner.kernel import kernel

RAW_DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int8", "int16", "int32"))
# With top_k 1 a zero may be a choice; so many in a row in one layer are taken for a fault.
_TOP_1_ROWS = 32
MOST_TOKENS = 2**24  # of one sequence, as the daemon takes them


def inspect(
    sequence: str,
    ids: NDArray[Any],
    model: MoeModel,
    *,
    rows: NDArray[np.uint8] | None = None,
    start: int = 0,
    weight_versions: tuple[str, ...] = (),
    field: str = "routed_experts",
) -> Routing:
    """Check one sequence's ids and say what each row is.

    ids: uint8, uint16, int8, int16 or int32 ``[tokens, layers, top_k]``; the layer axis holds all
    decoder layers or only those that route; a negative id means that nothing was recorded. rows:
    what the carrier says about each row; rows it calls PRESENT are checked.

    Raises InvalidInputError, naming sequence, field and layer, for another shape or type and for an
    id outside ``[0, num_experts)`` in a row that counts.
    """
    where = f"sequence {sequence!r}: {field}"
    if ids.ndim != 3 or ids.dtype not in RAW_DTYPES:
        raise InvalidInputError(
            f"{where}: expected integers of at most 32 bits [tokens, layers, top_k], "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    if ids.shape[2] != model.top_k:
        raise InvalidInputError(
            f"{where}: has {ids.shape[2]} experts per token, but the model's top_k is {model.top_k}"
        )
    if not 0 <= start <= MOST_TOKENS:
        raise InvalidInputError(f"{where}: start must lie in [0, {MOST_TOKENS}], got {start}")
    if rows is not None and rows.shape != ids.shape[:1]:
        raise InvalidInputError(f"{where}: has {len(ids)} rows, its mask {list(rows.shape)}")
    positions = model.positions(ids.shape[1], where)
    first, last = positions[0], positions[-1]
    if len(positions) == last + 1 - first:
        ids = ids[:, first : last + 1]
    else:
        ids = np.take(ids, positions, axis=1)
    known = np.zeros(len(ids), np.uint8) if rows is None else rows
    told, faults = _examine(sequence, where, ids, model, known)
    if ids.dtype.kind == "i" and ids.dtype.itemsize < 4:
        ids = ids.view(f"u{ids.dtype.itemsize}")  # what is negative does not count any more
    return Routing(
        sequence, ids, model.num_experts, model.layers, told, start, faults, weight_versions
    )


def check_rows(ids: NDArray[Any], tokens: int, start: int, where: str) -> None:
    """Raises InvalidInputError unless ``ids`` has a row for each token from ``start`` but the last.

    tokens: of prompt and output together.
    """
    rows, expected = ids.shape[0] if ids.ndim else 0, tokens - 1 - start
    if rows != expected:
        raise InvalidInputError(
            f"{where}: expected {expected} rows for {tokens} tokens from token {start} on, "
            f"got {rows}"
        )


def unfilled_tail(ids: NDArray[Any]) -> int:
    """How many of the last rows are all zero, as buffers that are padded to a length end."""
    end = len(ids)
    while end and not ids[end - 1].any():
        end -= 1
    return len(ids) - end


def _examine(
    sequence: str, where: str, ids: NDArray[Any], model: MoeModel, known: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], tuple[Fault, ...]]:
    """Rows as they are, and the faults."""
    layers = len(model.layers)
    blank, negative, blank_rows = _unwritten(where, ids, model, known)
    recorded = int(np.count_nonzero((known == Row.PRESENT) & (negative == 0)))
    lost = blank_rows == recorded if recorded else np.zeros(layers, bool)
    if model.top_k == 1:
        lost &= recorded >= _TOP_1_ROWS
        blank[:] = 0
    if recorded and lost.all():
        told = np.where(known == Row.PRESENT, Row.MISSING, known).astype(np.uint8)
        return told, (Fault(FaultKind.NOTHING_CAPTURED, sequence, recorded),)
    kinds = (FaultKind.LAYER_NOT_CAPTURED, sequence, recorded)
    faults = [Fault(*kinds, layer=model.layers[index]) for index in np.flatnonzero(lost)]
    left = layers - len(faults)
    unwritten = np.maximum(blank - len(faults), 0) if model.top_k > 1 else blank
    partly = (negative > 0) & (negative < layers) | (unwritten > 0) & (unwritten < left)
    wholly = (negative == 0) & (unwritten == left)
    for kind, found in (
        (FaultKind.ROWS_NOT_CAPTURED, wholly),
        (FaultKind.ROWS_PARTLY_CAPTURED, partly),
    ):
        if found.any():
            faults.append(Fault(kind, sequence, int(np.count_nonzero(found))))
    told = np.where((negative > 0) | partly | wholly, Row.MISSING, known).astype(np.uint8)
    return told, tuple(faults)


def _unwritten(
    where: str, ids: NDArray[Any], model: MoeModel, known: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """By row, layers with one expert only and with a negative id; by layer, rows of the former."""
    layers = len(model.layers)
    blank, negative = np.zeros((2, len(ids)), np.int32)
    blank_rows = np.zeros(layers, np.int64)
    flat, stride = flat_rows(ids)
    limit = largest_id(flat, model.num_experts)
    suspicious = _suspicious(flat, stride, len(ids), layers, model.top_k, limit)
    closely = np.flatnonzero(suspicious & (known == Row.PRESENT))
    found = np.zeros((2, len(closely)), np.int32)
    place, layer, expert = _scan(ids[closely], model.num_experts, found[0], found[1], blank_rows)
    if place >= 0:
        raise InvalidInputError(
            f"{where}: row {closely[place]}, layer {model.layers[layer]} has expert {expert}, "
            f"but the model has {model.num_experts} experts"
        )
    blank[closely], negative[closely] = found
    return blank, negative, blank_rows


@kernel
def _suspicious(
    flat: NDArray[Any], stride: int, tokens: int, layers: int, top_k: int, limit: Any
) -> NDArray[np.bool_]:
    """Rows to look at more closely: with an id beyond ``limit``, or a layer's first id again.

    flat, stride: of ``flat_rows``. Nearly all rows are none of it, so this, all that runs over
    every id, has to be fast.
    """
    found = np.zeros(tokens, np.bool_)
    second = min(1, top_k - 1)
    for token in range(tokens):
        row = flat[token * stride : token * stride + layers * top_k]
        largest = flat.dtype.type(0)
        for place in range(layers * top_k):
            largest = max(largest, row[place])
        again = False
        for layer in range(layers):
            expert = row[layer * top_k]
            again |= expert == row[layer * top_k + second] if top_k > 1 else expert == 0
        found[token] = again | (largest > limit)
    return found


@kernel
def _scan(
    ids: NDArray[Any],
    num_experts: int,
    blank: NDArray[np.int32],
    negative: NDArray[np.int32],
    blank_rows: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Count, by row, the layers with one expert only and those with a negative id.

    Also counts, by layer, the former's rows, not looking at rows with a negative id. Returns the
    first (token, layer, id) that is too large, or -1 three times.
    """
    tokens, layers, top_k = ids.shape
    for token in range(tokens):
        for layer in range(layers):
            first = ids[token, layer, 0]
            largest, lowest, differs = first, first, top_k == 1 and first != 0
            for choice in range(1, top_k):
                expert = ids[token, layer, choice]
                largest, lowest = max(largest, expert), min(lowest, expert)
                differs |= expert != first
            if largest >= num_experts:
                return token, layer, int(largest)
            if lowest < 0:
                negative[token] += 1
            elif not differs:
                blank[token] += 1
        if negative[token] == 0 and blank[token] > 0:
            for layer in range(layers):
                same = top_k > 1 or ids[token, layer, 0] == 0
                for choice in range(1, top_k):
                    same &= ids[token, layer, choice] == ids[token, layer, 0]
                blank_rows[layer] += same
    return -1, -1, -1
