"""Inside nodes: the replicas that bring every rank to a threshold, on several nodes.

What crosses nodes for the sake of nodes is chosen before (``foremoe.planner.between_nodes``); here
every rule of ``foremoe.planner.draft`` drafts once at the threshold, rules with matches from those
replicas on, pulls alone from nothing. Where the slack is rounding, nothing may match, and only
pulls draft. The draft that costs least wins, the earlier one between equals: each replica a quarter
of what pays for a copy across nodes, in another node all of it less the pairs it keeps near.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner import draft as drafts
from foremoe.planner.draft import RULES, Draft, Layer, attempt, blank, copy, layer_of, total, write
from foremoe.planner.kernel import kernel_with, part


@kernel_with(drafts)
def inside_nodes(
    origin: NDArray[np.int64],
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    threshold: NDArray[np.int64],
    worth: NDArray[np.int64],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Add replicas to those that cross nodes, to bring every rank to ``threshold [L]``.

    origin: int64 ``[L, N, E]``, pairs that originate in each node; ``worth [L]`` of them pay for a
    copy across nodes. expert_tokens, home: as for ``choose_replicas``.
    replica_expert, quota: ``[L, P, R]``, what is there already; replaced by the result.
    Returns bool ``[L]``: whether the threshold was reached. Where it was not, nothing changes.
    """
    layers, ranks, spare_slots = replica_expert.shape
    reached = np.zeros(layers, np.bool_)
    if spare_slots == 0:
        return reached
    draft = blank(ranks, home.shape[1], spare_slots)
    best = blank(ranks, home.shape[1], spare_slots)
    empty = np.full((ranks, spare_slots), -1, np.int32)
    for index in range(layers):
        reached[index] = _cheapest(
            layer_of(
                expert_tokens[index],
                home[index],
                replica_expert[index],
                quota[index],
                origin[index],
                worth[index],
            ),
            empty,
            draft,
            best,
            threshold[index],
        )
        if reached[index]:
            replica_expert[index] = -1
            quota[index] = 0
            write(best, replica_expert[index], quota[index])
    return reached


@part
def _cheapest(
    layer: Layer, empty: NDArray[np.int32], draft: Draft, best: Draft, threshold: int
) -> bool:
    """Draft by every rule, matches from the given replicas on, pulls alone from nothing.

    The draft that costs least goes to ``best``; False if none reaches the threshold. Where the
    slack is rounding, only pulls draft.
    """
    least, found = 0, False
    rounding = threshold * len(layer.home_load) - total(layer.weight) < len(layer.home_load)
    for quarters in RULES:
        if rounding and quarters > 0:
            continue
        given = empty if quarters == 0 else layer.given_expert
        if attempt(layer, given, draft, threshold, quarters):
            cost = _cost(layer, draft)
            if not found or cost < least:
                least, found = cost, True
                copy(draft, best)
    return found


@part
def _cost(layer: Layer, draft: Draft) -> int:
    """In pairs: each replica a quarter of what pays for one across nodes, less what stays near."""
    cost = 0
    for rank in range(len(draft.used)):
        node = rank // layer.ranks_per_node
        for slot in range(draft.used[rank]):
            expert = draft.expert[rank, slot]
            if layer.home[expert] // layer.ranks_per_node == node:
                cost += layer.worth // 4
            else:
                cost += layer.worth - min(draft.quota[rank, slot], layer.origin[node, expert])
    return cost
