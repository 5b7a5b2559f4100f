"""Where (token, expert) pairs are dispatched: from the rank they originate on to where computed."""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.plan import Plan


def home_traffic(load: NDArray[np.int64], home: NDArray[np.int32]) -> NDArray[np.int64]:
    """Pairs when all go home: ``load [L, P, E]``, ``home [L, E]`` -> ``[P_source, P]``."""
    _, ranks, experts = load.shape
    total = np.zeros((ranks, ranks), np.int64)
    running = np.zeros((ranks, experts + 1), np.int64)
    for pairs, owner in zip(load, home, strict=True):  # layer by layer, so that threads take turns
        order = np.argsort(owner, kind="stable")
        np.cumsum(pairs[:, order], axis=1, out=running[:, 1:])
        ends = np.searchsorted(owner[order], np.arange(ranks + 1))
        total += running[:, ends[1:]] - running[:, ends[:-1]]
    return total


def plan_traffic(plan: Plan) -> NDArray[np.int64]:
    """The same by plan: a replica's pairs go to its rank instead of home."""
    total = home_traffic(plan.load, plan.home)
    total += plan.replica_tokens.sum(axis=(0, 3))
    layer, rank, slot = np.nonzero(plan.replica_expert >= 0)
    owner = plan.home[layer, plan.replica_expert[layer, rank, slot]]
    np.subtract.at(total.T, owner, plan.replica_tokens[layer, :, rank, slot])
    return total
