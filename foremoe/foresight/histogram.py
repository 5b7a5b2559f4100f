"""From routed-expert ids to tokens per expert: what foresight is reduced to before it travels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.kernel import kernel

ID_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int32))


def expert_histogram(
    ids: NDArray[Any], num_experts: int, skip: NDArray[np.uint8] | None = None
) -> NDArray[np.uint32]:
    """Tokens per layer and expert of one sequence.

    ids: uint8, uint16 or int32 ``[tokens, layers, top_k]``. skip: uint8 ``[tokens]``, rows that
    are not 0 do not count, whatever they hold. Returns uint32 ``[layers, experts]``.
    Raises InvalidInputError for another shape or type, or an id outside ``[0, num_experts)``.
    """
    if ids.ndim != 3 or ids.dtype not in ID_DTYPES:
        raise InvalidInputError(
            f"expert ids: expected uint8, uint16 or int32 [tokens, layers, top_k], "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    if num_experts < 1:
        raise InvalidInputError(f"num_experts: must be at least 1, got {num_experts}")
    if skip is None:
        skip = np.zeros(len(ids), np.uint8)
    elif skip.shape != ids.shape[:1] or skip.dtype != np.uint8:
        raise InvalidInputError(
            f"skip: expected uint8 [{len(ids)}], got {skip.dtype} {list(skip.shape)}"
        )
    histogram = np.zeros((ids.shape[1], num_experts), np.uint32)
    token, layer, expert = _count(np.ascontiguousarray(ids), skip, histogram)
    if token >= 0:
        raise InvalidInputError(
            f"expert ids: token {token}, layer row {layer} has expert {expert}, "
            f"but there are {num_experts} experts"
        )
    return histogram


def warm_up() -> None:
    """Compile the kernel for every id type, or load it from the cache."""
    for dtype in ID_DTYPES:
        expert_histogram(np.zeros((1, 1, 1), dtype), 1)


@kernel
def _count(
    ids: NDArray[Any], skip: NDArray[np.uint8], histogram: NDArray[np.uint32]
) -> tuple[int, int, int]:
    """Add up ``ids``; the first bad (token, layer, id), or -1 three times."""
    tokens, layers, top_k = ids.shape
    experts = histogram.shape[1]
    for token in range(tokens):
        if skip[token] != 0:
            continue
        for layer in range(layers):
            for choice in range(top_k):
                expert = ids[token, layer, choice]
                if expert < 0 or expert >= experts:
                    return token, layer, int(expert)
                histogram[layer, expert] += np.uint32(1)
    return -1, -1, -1
