"""Certificates: what no plan with these homes and spare slots can beat.

For one layer let w_e be the pairs of expert e, H_p the pairs of rank p without replicas and P the
number of ranks. Whatever the plan, the busiest rank computes at least T, where T is the smallest
integer with

* T >= ceil(sum(w) / P), the mean, and
* sum_p max(H_p - T, 0) <= sum_p min(max(T - H_p, 0), the R largest w_e not at home on p):
  what the ranks above T must give away, the ranks below T must be able to take, each with R slots.

Both sides are monotone in T, so bisection finds it.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part


@kernel
def lower_bound(
    expert_tokens: NDArray[np.int64], home: NDArray[np.int32], ranks: int, spare_slots: int
) -> NDArray[np.int64]:
    """Least possible pairs on the busiest rank: ``expert_tokens, home [L, E]`` -> int64 ``[L]``."""
    layers, experts = home.shape
    bound = np.zeros(layers, np.int64)
    for layer in range(layers):
        weight = expert_tokens[layer]
        home_load = np.zeros(ranks, np.int64)
        total = 0
        for expert in range(experts):
            home_load[home[layer, expert]] += weight[expert]
            total += weight[expert]
        importable = _importable(weight, home[layer], ranks, spare_slots)
        low = (total + ranks - 1) // ranks
        high = low
        for rank in range(ranks):
            high = max(high, home_load[rank])
        while low < high:
            middle = (low + high) // 2
            excess = 0
            room = 0
            for rank in range(ranks):
                excess += max(home_load[rank] - middle, 0)
                room += min(max(middle - home_load[rank], 0), importable[rank])
            if excess <= room:
                high = middle
            else:
                low = middle + 1
        bound[layer] = low
    return bound


@part
def _importable(
    weight: NDArray[np.int64], home: NDArray[np.int32], ranks: int, spare_slots: int
) -> NDArray[np.int64]:
    """Sum of the ``spare_slots`` heaviest experts that are not at home on each rank: ``[P]``."""
    importable = np.zeros(ranks, np.int64)
    if spare_slots == 0:
        return importable
    experts = len(weight)
    heaviest = np.zeros(experts, np.int64)  # sorted only as far as some rank asks
    listed = np.zeros(experts, np.bool_)
    known = 0
    for rank in range(ranks):
        taken = 0
        for place in range(experts):
            if place == known:
                heaviest[place] = _heaviest_unlisted(weight, listed)
                listed[heaviest[place]] = True
                known += 1
            expert = heaviest[place]
            if home[expert] != rank:
                importable[rank] += weight[expert]
                taken += 1
                if taken == spare_slots:
                    break
    return importable


@part
def _heaviest_unlisted(weight: NDArray[np.int64], listed: NDArray[np.bool_]) -> int:
    heaviest = -1
    for expert in range(len(weight)):
        if not listed[expert] and (heaviest < 0 or weight[expert] > weight[heaviest]):
            heaviest = expert
    return heaviest
