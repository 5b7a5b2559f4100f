"""What a target imbalance means in pairs."""

import numpy as np
from numpy.typing import NDArray


def goal_tokens(
    expert_tokens: NDArray[np.int64], ranks: int, target: float | NDArray[np.float64] | None
) -> NDArray[np.int64]:
    """Pairs on the busiest rank that a target imbalance allows: ``[L, E]`` -> int64 ``[L]``.

    0 without a target, at least 1 with one; a target for all layers, or for each ``[L]``.
    """
    total = expert_tokens.sum(axis=1)
    if target is None:
        return np.zeros_like(total)
    goal: NDArray[np.int64] = np.floor(total * np.minimum(target / ranks, 1.0)).astype(np.int64)
    return np.maximum(goal, 1)
