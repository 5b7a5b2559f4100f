"""What plans bring into slots: it follows from the plans alone, so both stages share it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.plan import Plan
from foremoe.transfer.copies import EMPTY, Fill, assign_slots


class Turnover(NamedTuple):
    """One layer's slots in one micro-step: int32 ``[P, R]`` each, -1 for none.

    fills: copies that are needed; value: of each, the pairs that its rank's replicas serve.
    evicted: what the fills overwrite. content: what the slots hold afterwards.
    """

    fills: list[Fill]
    value: list[int]
    evicted: NDArray[np.int32]
    content: NDArray[np.int32]


def turnover(plans: Sequence[Plan], mini_batch: NDArray[np.int32]) -> list[list[Turnover]]:
    """Of every micro-step and layer; at the start of each mini-batch all slots are void."""
    found: list[list[Turnover]] = []
    for index, plan in enumerate(plans):
        begins = index == 0 or mini_batch[index] != mini_batch[index - 1]
        served = plan.replica_tokens.sum(axis=(1, 3))
        layers = []
        for layer, wanted in enumerate(plan.replica_expert):
            before = np.full_like(wanted, EMPTY) if begins else found[-1][layer].content
            content, fills = assign_slots(wanted, before)
            value = served[layer, [fill.rank for fill in fills]].tolist() if fills else []
            evicted = np.where(content != before, before, EMPTY)
            layers.append(Turnover(fills, value, evicted, content))
        found.append(layers)
    return found
