"""Where (token, expert) pairs are dispatched: from the rank they originate on to where computed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.plan import Plan


def stage_traffic(
    plans: Sequence[Plan], without: NDArray[np.int32] | None = None
) -> NDArray[np.int64]:
    """Pairs of a stage without replicas, and by its plans: int64 ``[2, P_source, P]``.

    without: homes ``[L, E]`` of the former, None for the plans' own, which are all the same.
    """
    load = plans[0].load.copy()
    for plan in plans[1:]:
        load += plan.load
    planned = _home_traffic(load, plans[0].home)
    before = planned.copy() if without is None else _home_traffic(load, without)
    for plan in plans:
        planned += _moved(plan)
    return np.stack([before, planned])


def _home_traffic(load: NDArray[np.int64], home: NDArray[np.int32]) -> NDArray[np.int64]:
    """When all pairs go home: ``load [L, P, E]``, ``home [L, E]`` -> ``[P_source, P]``."""
    ranks = load.shape[1]
    total = np.zeros((ranks, ranks), np.int64)
    for pairs, owner in zip(load, home, strict=True):  # layer by layer, so that threads take turns
        total += _by_owner(pairs, owner)
    return total


def _moved(plan: Plan) -> NDArray[np.int64]:
    """What replicas change: their pairs go to their ranks instead of home."""
    layer, rank, slot = np.nonzero(plan.replica_expert >= 0)
    owner = plan.home[layer, plan.replica_expert[layer, rank, slot]]
    served = plan.replica_tokens[layer, :, rank, slot].T
    return _by_owner(served, rank) - _by_owner(served, owner)


def _by_owner(pairs: NDArray[np.int64], owner: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Columns summed up by owner: ``[P, N]``, ``[N]`` -> ``[P, P]``."""
    ranks = len(pairs)
    order = np.argsort(owner, kind="stable")
    running = np.zeros((ranks, len(owner) + 1), np.int64)
    np.cumsum(pairs[:, order], axis=1, out=running[:, 1:])
    ends = np.searchsorted(owner[order], np.arange(ranks + 1))
    return running[:, ends[1:]] - running[:, ends[:-1]]
