"""From routed-expert ids to tokens per expert: what foresight is reduced to before it travels."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
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
    flat, stride = flat_rows(ids)
    histogram = np.zeros((ids.shape[1], num_experts), np.uint32)
    token = _count(flat, stride, ids.shape[2], largest_id(flat, num_experts), skip, histogram)
    if token >= 0:
        layer, choice = np.argwhere((ids[token] < 0) | (ids[token] >= num_experts))[0]
        raise InvalidInputError(
            f"expert ids: token {token}, layer row {layer} has expert {ids[token, layer, choice]}, "
            f"but there are {num_experts} experts"
        )
    return histogram


def first_repeat(ids: NDArray[Any], num_experts: int) -> tuple[int, int] | None:
    """Token and layer row of the first that names an expert twice; ids as ``expert_histogram``."""
    tokens, layers, top_k = ids.shape
    flat, stride = flat_rows(ids)
    place = _first_repeat(flat, stride, tokens, layers, top_k, np.full(num_experts, -1))
    return None if place < 0 else divmod(place, layers)


def flat_rows(ids: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """``ids [tokens, layers, top_k]`` as unsigned, flat, and how far a row is from the next.

    Layers that are a slice of what was carried are not copied.
    """
    tokens, layers, top_k = ids.shape
    width, size = layers * top_k, ids.itemsize
    if not ids.size:
        return np.zeros(0, f"u{size}"), 0
    beside = ids.strides[1:] == (top_k * size, size)
    if not beside or ids.strides[0] % size or ids.strides[0] < width * size:
        ids = np.ascontiguousarray(ids)
    stride = ids.strides[0] // size
    flat = as_strided(ids, ((tokens - 1) * stride + width,), (size,), writeable=False)
    return flat.view(f"u{size}"), stride


def largest_id(unsigned: NDArray[Any], num_experts: int) -> Any:
    """``num_experts - 1``, or what the type of ``unsigned`` can say at most, as that type.

    Signed ids viewed as unsigned ones are beyond it when they are negative.
    """
    return unsigned.dtype.type(min(num_experts - 1, np.iinfo(unsigned.dtype).max))


def warm_up() -> None:
    """Compile the kernel for every id type, or load it from the cache."""
    for dtype in ID_DTYPES:
        expert_histogram(np.zeros((1, 1, 1), dtype), 1)


@kernel
def _count(
    flat: NDArray[Any],
    stride: int,
    top_k: int,
    limit: Any,
    skip: NDArray[np.uint8],
    histogram: NDArray[np.uint32],
) -> int:
    """Add up the ids of ``flat_rows``; the first token that has one beyond ``limit``, or -1."""
    layers = histogram.shape[0]
    for token in range(len(skip)):
        if skip[token] != 0:
            continue
        row = flat[token * stride : token * stride + layers * top_k]
        largest = flat.dtype.type(0)
        for place in range(layers * top_k):
            largest = max(largest, row[place])  # far cheaper than a look at each before its use
        if largest > limit:
            return token
        for layer in range(layers):
            for choice in range(top_k):
                histogram[layer, row[layer * top_k + choice]] += np.uint32(1)
    return -1


@kernel
def _first_repeat(
    flat: NDArray[Any],
    stride: int,
    tokens: int,
    layers: int,
    top_k: int,
    last: NDArray[np.int64],
) -> int:
    """Of ``flat_rows``, token * layers + layer, or -1; last: ``[E]``, where each was seen."""
    for token in range(tokens):
        for layer in range(layers):
            for choice in range(top_k):
                expert = flat[token * stride + layer * top_k + choice]
                if last[expert] == token * layers + layer:
                    return token * layers + layer
                last[expert] = token * layers + layer
    return -1
