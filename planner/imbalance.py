"""The one definition of imbalance; every table, log line and metric uses it."""

import numpy as np
from numpy.typing import NDArray


def imbalance(rank_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Max over ranks / mean over ranks of ``rank_tokens [..., P]``: ``[...]``, 1.0 is perfect.

    A row without tokens is perfectly balanced.
    """
    total = rank_tokens.sum(axis=-1)
    ranks = rank_tokens.shape[-1]
    busiest = rank_tokens.max(axis=-1)
    return np.where(total == 0, 1.0, busiest * ranks / np.maximum(total, 1))
