"""Replicas and quotas of one micro-step: which spare slot holds which expert, for how many pairs.

For one layer, w_e pairs per expert, fixed homes and R spare slots per rank, find replicas and
quotas that bring every rank to at most a threshold T, all ranks alike. All numbers are pairs, all
integers. ``foremoe.planner.draft`` tells how replicas are drafted at a threshold.

Without a goal the threshold is bisected between the lower bound and the load without replicas,
with pulls alone as the judge: they reach the lowest thresholds. With a goal, the goal is the
threshold as long as any rule reaches it. At the threshold found, every rule drafts once (pulls
alone only if nothing else got there) and the draft with the fewest replicas wins, the earlier one
between equals.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner import draft as drafts
from foremoe.planner.draft import (
    RULES,
    Draft,
    Layer,
    attempt,
    blank,
    copy,
    highest,
    layer_of,
    reset,
    total,
    write,
)
from foremoe.planner.kernel import kernel_with, part

JUDGE = 0  # the rule of pulls alone


@kernel_with(drafts)
def choose_replicas(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    bound: NDArray[np.int64],
    goal: NDArray[np.int64],
    ranks: int,
    spare_slots: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas and quotas for every layer of one micro-step, all ranks alike.

    expert_tokens: int64 ``[L, E]``. home: int32 ``[L, E]``, E / P experts per rank.
    bound: int64 ``[L]``, where the search for a threshold starts.
    goal: int64 ``[L]``, pairs on the busiest rank that suffice; 0 asks for the best balance.
    Returns replica_expert int32 ``[L, P, R]`` (-1 for an empty slot) and quota int64 ``[L, P, R]``.
    A layer that replicas cannot improve gets none.
    """
    layers, experts = home.shape
    replica_expert = np.full((layers, ranks, spare_slots), -1, np.int32)
    quota = np.zeros((layers, ranks, spare_slots), np.int64)
    if spare_slots == 0:
        return replica_expert, quota
    draft = blank(ranks, experts, spare_slots)
    best = blank(ranks, experts, spare_slots)
    origin = np.zeros((1, experts), np.int64)  # all ranks alike: one node
    for index in range(layers):
        layer = layer_of(
            expert_tokens[index], home[index], replica_expert[index], quota[index], origin, 0
        )
        _plan_layer(layer, draft, best, bound[index], goal[index])
        write(best, replica_expert[index], quota[index])
    return replica_expert, quota


@part
def _plan_layer(layer: Layer, draft: Draft, best: Draft, bound: int, goal: int) -> None:
    """Leave the chosen draft in ``best``."""
    reset(layer, layer.given_expert, best)
    high = highest(layer.home_load)
    threshold = max(bound, goal)
    if high <= threshold:
        return
    if goal > 0 and _fewest(layer, draft, best, threshold):
        return
    reset(layer, layer.given_expert, best)
    low = max(bound, goal + 1)
    threshold = low
    while low < high:
        reached = attempt(layer, layer.given_expert, draft, threshold, JUDGE)
        busiest = highest(draft.tokens)
        if busiest < high:
            high = busiest
            copy(draft, best)
        if not reached:
            low = threshold + 1
        threshold = (low + high) // 2
    if high < highest(layer.home_load):
        _fewest(layer, draft, best, high)


@part
def _fewest(layer: Layer, draft: Draft, best: Draft, threshold: int) -> bool:
    """Draft by every rule; the one with the fewest replicas goes to ``best``, False if none does.

    Pulls alone draft only if no other rule reaches the threshold.
    """
    least = -1
    ranks = len(layer.home_load)
    for quarters in RULES:
        if least >= 0 and (quarters == 0 or threshold * ranks - total(layer.weight) < ranks):
            continue  # or nothing may match, and all rules only pull
        if attempt(layer, layer.given_expert, draft, threshold, quarters):
            replicas = total(draft.used)
            if least < 0 or replicas < least:
                least = replicas
                copy(draft, best)
    return least >= 0
