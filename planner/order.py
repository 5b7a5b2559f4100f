"""The order of a mini-batch's micro-steps: alike ones in a row, so that replicas can stay.

Micro-steps of a mini-batch commute: all use the same weights, and their gradients are summed. Their
order decides how much the load changes from one to the next, and with it how many replicas have to
be copied (``foremoe.planner.over_time``). With x_mle the share of expert e in the pairs of layer l
of micro-step m, the order is a short path through the micro-steps of each mini-batch, where m and n
are sum_le (x_mle - x_nle)^2 apart: the nearest that is left comes next, and then parts of the path
are reversed as long as that shortens it (2-opt; Croes, Operations Research 6, 1958).

All numbers are integers (shares in units of 1/4096), ties go to the lowest micro-step. A few layers
tell enough: at most ``SHARES`` shares of a micro-step are compared.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.kernel import kernel, part

SHARES = 2048  # of a micro-step, that are compared
MOST_MICRO_STEPS = 1024  # of a mini-batch; longer ones keep their order
SHARE = 4096


def compared_layers(layers: int, experts: int) -> NDArray[np.int64]:
    """The rows of ``layers`` that are compared, evenly spaced."""
    return np.arange(0, layers, -(-layers * experts // SHARES))


def similar_order(
    expert_tokens: NDArray[np.int64], mini_batch: NDArray[np.integer]
) -> NDArray[np.int64]:
    """An order of micro-steps, int64 ``[M]``: the micro-step at each place.

    expert_tokens: int64 ``[M, L, E]``, of the layers to be compared. mini_batch: ``[M]``,
    non-decreasing; micro-steps stay in theirs.
    Raises InvalidInputError if the shapes disagree.
    """
    if expert_tokens.ndim != 3 or mini_batch.shape != expert_tokens.shape[:1]:
        raise InvalidInputError(
            "expert_tokens: expected [micro_steps, layers, experts] with as many micro-steps as "
            f"mini_batch, got {list(expert_tokens.shape)} and {list(mini_batch.shape)}"
        )
    order = np.arange(len(mini_batch))
    total = expert_tokens.sum(axis=2, keepdims=True)
    scale = (total >> 31) + 1  # exact below 2**31
    share = (expert_tokens // scale) * SHARE // np.maximum(total // scale, 1)
    share = share.reshape(len(share), -1)
    for number in np.unique(mini_batch):
        members = np.flatnonzero(mini_batch == number)
        if 2 < len(members) <= MOST_MICRO_STEPS:
            order[members] = members[_short_path(np.ascontiguousarray(share[members]))]
    return order


@kernel
def _short_path(share: NDArray[np.int64]) -> NDArray[np.int64]:
    """Through all points ``share [M, S]``, or as they come if that is no longer."""
    distance = _distances(share)
    given = np.arange(len(share))
    path = _nearest_next(distance)
    _shorten(distance, path)
    return path if _length(distance, path) < _length(distance, given) else given


@part
def _distances(share: NDArray[np.int64]) -> NDArray[np.int64]:
    points, width = share.shape
    distance = np.zeros((points, points), np.int64)
    for one in range(points):
        for other in range(one):
            total = 0
            for place in range(width):
                difference = share[one, place] - share[other, place]
                total += difference * difference
            distance[one, other] = distance[other, one] = total
    return distance


@part
def _nearest_next(distance: NDArray[np.int64]) -> NDArray[np.int64]:
    """From the first point on, always to the nearest that is left."""
    path = np.arange(len(distance))
    for place in range(1, len(path)):
        best = place
        for later in range(place, len(path)):
            point, nearest = path[later], path[best]
            before = path[place - 1]
            if (distance[before, point], point) < (distance[before, nearest], nearest):
                best = later
        path[place], path[best] = path[best], path[place]
    return path


@part
def _shorten(distance: NDArray[np.int64], path: NDArray[np.int64]) -> None:
    """Reverse parts of the path, also at its ends, as long as that shortens it."""
    last = len(path) - 1
    shortened = True
    while shortened:
        shortened = False
        for start in range(last):
            for end in range(start + 1, last + 1):
                gain = 0
                if start > 0:
                    gain += distance[path[start - 1], path[start]]
                    gain -= distance[path[start - 1], path[end]]
                if end < last:
                    gain += distance[path[end], path[end + 1]]
                    gain -= distance[path[start], path[end + 1]]
                if gain > 0:
                    path[start : end + 1] = path[start : end + 1][::-1].copy()
                    shortened = True


@part
def _length(distance: NDArray[np.int64], path: NDArray[np.int64]) -> int:
    length = 0
    for place in range(len(path) - 1):
        length += distance[path[place], path[place + 1]]
    return length


def warm_up() -> None:
    """Compile the kernel, or load it from the cache."""
    similar_order(np.ones((3, 1, 1), np.int64), np.zeros(3, np.int32))
