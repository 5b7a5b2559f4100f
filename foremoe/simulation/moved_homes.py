"""Plans that place homes anew, said with homes that stay: what is elsewhere is a replica.

Copies and gradients of a placement such as EPLB's can so be charged like anybody else's: an expert
that comes to a rank is a copy of its weights, one that leaves sends its gradient to the home, which
keeps the optimizer's state. That is the least a trainer can do; moving the state costs more.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.plan import Plan


def homes_as_replicas(plan: Plan, home: NDArray[np.int32]) -> Plan:
    """The plan's placement and split with every expert at ``home [L, E]``.

    Its slots are as many as a rank of ``plan`` hosts experts. A home that the plan leaves without
    its expert computes none of it.
    """
    layers, ranks, experts = plan.load.shape
    slots = experts // ranks + plan.replica_expert.shape[2]
    replica_expert = np.full((layers, ranks, slots), -1, np.int32)
    replica_tokens = np.zeros((layers, ranks, ranks, slots), np.int64)
    for layer in range(layers):
        served = _served(plan, layer)
        hosted: NDArray[np.bool_] = served.sum(axis=0) > 0
        hosted[home[layer], np.arange(experts)] = False
        for rank in range(ranks):
            away = np.flatnonzero(hosted[rank])
            replica_expert[layer, rank, : away.size] = away
            replica_tokens[layer, :, rank, : away.size] = served[:, rank, away]
    return Plan(home, plan.load, replica_expert, replica_tokens, plan.bound)


def _served(plan: Plan, layer: int) -> NDArray[np.int64]:
    """Pairs of each source that each rank computes, by expert: int64 ``[P_source, P, E]``."""
    _, ranks, experts = plan.load.shape
    served = np.zeros((ranks, ranks, experts), np.int64)
    left = plan.load[layer].copy()
    for rank, slot in np.argwhere(plan.replica_expert[layer] >= 0).tolist():
        expert = plan.replica_expert[layer, rank, slot]
        pairs = plan.replica_tokens[layer, :, rank, slot]
        served[:, rank, expert] += pairs
        left[:, expert] -= pairs
    served[:, plan.home[layer], np.arange(experts)] += left
    return served
