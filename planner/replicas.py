"""Replicas and quotas of one micro-step: which spare slot holds which expert, for how many pairs.

For one layer, w_e pairs per expert, fixed homes and R spare slots per rank, find replicas and
quotas that bring every rank to at most a threshold T. All numbers are pairs, all integers.

A draft moves one piece after another from a rank above T, the donor, to a rank below T with a free
slot, the receiver, until no rank is above T. The donor always offers its largest expert, the
receiver never rises above T. Each move is the first of these that is possible:

* match: the donor gives exactly what it has above T to one receiver with room for all of it. Of
  all such pairs the one with the least waste, the room left over. Waste counts only up to a share
  of the slack, the room that the ranks below T have beyond what the ranks above T must give; a
  slack of less than one pair a rank is rounding and not worth the search. Each match settles two
  ranks with one replica, so many matches mean few replicas.
* pull: the emptiest receiver fills up, from the donor that offers the largest piece, between equal
  pieces from the fullest. The donor may drop below T and become a receiver: no room is wasted.
  This is the pairing of the alias method (Walker 1977, Vose 1991) under a limit of R slots.

All ties go to the lowest rank and the lowest expert, so a plan is a function of its input.

A rule says how large a share of the slack a match may waste (none at all: only pulls) and whether
it drafts node by node. If so, moves across nodes come first and only as many as the nodes' loads
need: as long as the ranks of a node have more than T each, its largest piece goes to the node with
the fewest pairs. That brings a node half of its share of the slack below T for each rank, so that
there is slack within the node too. Then every node is drafted within itself, and what that leaves
is drafted over all ranks.

Without a goal the threshold is bisected between the lower bound and the load without replicas,
with pulls alone as the judge: they reach the lowest thresholds. With a goal, the goal is the
threshold as long as any rule reaches it. At the threshold found, every rule drafts once (pulls
alone only if nothing else got there) and the cheapest draft wins, the earlier one between equals.
A replica outside its home's node costs as much as four within: it crosses the slower network.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part

OUTSIDE_COST = 4
# (share of the slack a match may waste, in quarters; node by node), in the order of trial.
# Values of numpy, not int and bool: numba would compile a kernel for each of those apart.
RULES = np.array([[2, 1], [2, 0], [4, 0], [0, 0]])
JUDGE = RULES[-1]


class Layer(NamedTuple):
    """What a draft is made from: one layer's loads and homes."""

    weight: NDArray[np.int64]  # [E] pairs per expert
    home: NDArray[np.int32]  # [E]
    local: NDArray[np.int32]  # [P, E / P] experts at home on each rank, ascending
    home_load: NDArray[np.int64]  # [P] pairs per rank without replicas
    node: NDArray[np.int64]  # [P]
    ranks_per_node: int


class Draft(NamedTuple):
    """A placement under construction, and what is left for the homes."""

    tokens: NDArray[np.int64]  # [P] pairs each rank computes
    need: NDArray[np.int64]  # [P] what it has above the threshold; 0 for no donor
    room: NDArray[np.int64]  # [P] what it can take in a free slot; 0 for no receiver
    left: NDArray[np.int64]  # [E] pairs still with the home
    largest: NDArray[np.int64]  # [P] local expert with the most left
    used: NDArray[np.int64]  # [P] spare slots taken
    expert: NDArray[np.int32]  # [P, R]
    quota: NDArray[np.int64]  # [P, R]


@kernel
def choose_replicas(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    bound: NDArray[np.int64],
    goal: NDArray[np.int64],
    ranks: int,
    ranks_per_node: int,
    spare_slots: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas and quotas for every layer of one micro-step.

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
    draft = _blank(ranks, experts, spare_slots)
    best = _blank(ranks, experts, spare_slots)
    for index in range(layers):
        layer = _layer(expert_tokens[index], home[index], ranks, ranks_per_node)
        _plan_layer(layer, draft, best, bound[index], goal[index])
        for rank in range(ranks):
            for slot in range(best.used[rank]):
                replica_expert[index, rank, slot] = best.expert[rank, slot]
                quota[index, rank, slot] = best.quota[rank, slot]
    return replica_expert, quota


@part
def _plan_layer(layer: Layer, draft: Draft, best: Draft, bound: int, goal: int) -> None:
    """Leave the chosen draft in ``best``."""
    _reset(layer, best)
    high = _highest(layer.home_load)
    threshold = max(bound, goal)
    if high <= threshold:
        return
    if goal > 0 and _cheapest(layer, draft, best, threshold):
        return
    low = max(bound, goal + 1)
    threshold = low
    while low < high:
        reached = _attempt(layer, draft, threshold, JUDGE[0], JUDGE[1])
        busiest = _highest(draft.tokens)
        if busiest < high:
            high = busiest
            _copy(draft, best)
        if not reached:
            low = threshold + 1
        threshold = (low + high) // 2
    _cheapest(layer, draft, best, high)


@part
def _cheapest(layer: Layer, draft: Draft, best: Draft, threshold: int) -> bool:
    """Draft by every rule at ``threshold``, which is not above what homes alone reach.

    Keeps the cheapest in ``best``, which has no replicas unless it reaches ``threshold`` itself.
    False if no draft does.
    """
    least = _cost(layer, best)
    for quarters, by_node in RULES:
        if by_node and layer.ranks_per_node == len(layer.home_load):
            continue
        if quarters == 0 and least > 0:
            continue
        if not _attempt(layer, draft, threshold, quarters, by_node):
            continue
        cost = _cost(layer, draft)
        if least == 0 or cost < least:
            least = cost
            _copy(draft, best)
    return least > 0


@part
def _cost(layer: Layer, draft: Draft) -> int:
    cost = 0
    for rank in range(len(draft.used)):
        for slot in range(draft.used[rank]):
            owner = layer.home[draft.expert[rank, slot]]
            cost += 1 if layer.node[rank] == layer.node[owner] else OUTSIDE_COST
    return cost


@part
def _attempt(layer: Layer, draft: Draft, threshold: int, quarters: int, by_node: int) -> bool:
    """Draft by one rule; True if every rank ends at or below ``threshold``."""
    _reset(layer, draft)
    ranks, width = len(draft.tokens), layer.ranks_per_node
    for rank in range(ranks):
        _settle(draft, rank, threshold)
    if by_node:
        _level_nodes(layer, draft, threshold)
        for start in range(0, ranks, width):
            _level_ranks(layer, draft, threshold, quarters, start, start + width)
    return _level_ranks(layer, draft, threshold, quarters, 0, ranks)


@part
def _level_nodes(layer: Layer, draft: Draft, threshold: int) -> None:
    """Move pieces across nodes until each could be at the threshold within, or nothing can move."""
    ranks, width = len(draft.tokens), layer.ranks_per_node
    slack = threshold * ranks - _total(draft.tokens)
    node_threshold = threshold * width - slack * width // (2 * ranks)
    while True:
        fullest, emptiest = 0, 0
        most, least = 0, 2**62
        for start in range(0, ranks, width):
            tokens = _total(draft.tokens[start : start + width])
            if tokens > most:
                fullest, most = start, tokens
            if tokens < least and _total(draft.room[start : start + width]) > 0:
                emptiest, least = start, tokens
        wanted = min(most - node_threshold, node_threshold - least)
        if wanted <= 0 or most <= threshold * width:
            return
        donor = fullest
        for rank in range(fullest, fullest + width):
            piece = min(wanted, draft.left[draft.largest[rank]])
            best = min(wanted, draft.left[draft.largest[donor]])
            if piece > best or (piece == best and draft.tokens[rank] > draft.tokens[donor]):
                donor = rank
        wanted = min(wanted, draft.left[draft.largest[donor]])
        receiver = emptiest
        for rank in range(emptiest, emptiest + width):
            # The tightest room that is enough, else the largest.
            room, best = draft.room[rank], draft.room[receiver]
            if (wanted <= room < best) or (best < wanted and best < room):
                receiver = rank
        _give(layer, draft, donor, receiver, min(wanted, draft.room[receiver]))
        _settle(draft, donor, threshold)
        _settle(draft, receiver, threshold)


@part
def _level_ranks(
    layer: Layer, draft: Draft, threshold: int, quarters: int, start: int, end: int
) -> bool:
    """Match and pull among the ranks from ``start`` to ``end``; False if some stay above."""
    while True:
        excess = _total(draft.need[start:end])
        slack = _total(draft.room[start:end]) - excess
        if excess == 0:
            return True
        if slack < 0:
            return False
        donor = -1
        if quarters > 0 and slack >= end - start:
            donor, receiver, piece = _match(draft, slack * quarters // 4, start, end)
        if donor < 0:
            donor, receiver, piece = _pull(draft, start, end)
        _give(layer, draft, donor, receiver, piece)
        _settle(draft, donor, threshold)
        _settle(draft, receiver, threshold)


@part
def _settle(draft: Draft, rank: int, threshold: int) -> None:
    """Note what a rank must give or can take."""
    above = draft.tokens[rank] - threshold
    free = draft.used[rank] < draft.expert.shape[1]
    draft.need[rank] = max(above, 0)
    draft.room[rank] = max(-above, 0) if free else 0


@part
def _match(draft: Draft, most_waste: int, start: int, end: int) -> tuple[int, int, int]:
    """The donor and receiver that settle each other best, and the piece; -1 if all waste more."""
    donor = -1
    waste = most_waste + 1
    for rank in range(start, end):
        if draft.need[rank] == 0 or draft.left[draft.largest[rank]] < draft.need[rank]:
            continue
        rank_waste = _least_waste(draft.room[start:end], draft.need[rank])
        if rank_waste < waste:
            donor, waste = rank, rank_waste
    if donor < 0:
        return -1, -1, 0
    receiver = start
    while draft.room[receiver] - draft.need[donor] != waste:
        receiver += 1
    return donor, receiver, draft.need[donor]


@part
def _least_waste(room: NDArray[np.int64], need: int) -> int:
    """The least that stays free where ``need`` fits; 2**63 - 1 if it fits nowhere."""
    waste = np.uint64(2**63 - 1)
    for taker in range(len(room)):
        # Where it does not fit, the difference wraps to more than 2**63: no branch, one vector.
        waste = min(waste, np.uint64(room[taker] - need))
    return int(np.int64(waste))


@part
def _pull(draft: Draft, start: int, end: int) -> tuple[int, int, int]:
    """The donor with the largest piece for the emptiest receiver, that receiver, and the piece."""
    receiver = start
    for rank in range(start, end):
        if draft.room[rank] > draft.room[receiver]:
            receiver = rank
    donor = -1
    best = (0, 0)
    for rank in range(start, end):
        if draft.need[rank] > 0:
            piece = min(draft.room[receiver], draft.left[draft.largest[rank]])
            if (piece, draft.need[rank]) > best:
                donor = rank
                best = (piece, draft.need[rank])
    return donor, receiver, best[0]


@part
def _give(layer: Layer, draft: Draft, donor: int, receiver: int, piece: int) -> None:
    """Put a replica of the donor's largest expert with ``piece`` pairs on the receiver.

    The receiver does not hold that expert yet: an earlier piece of it would have filled the
    receiver, used the expert up or brought the donor to the threshold for good.
    """
    expert = draft.largest[donor]
    slot = draft.used[receiver]
    draft.expert[receiver, slot] = expert
    draft.quota[receiver, slot] = piece
    draft.used[receiver] += 1
    draft.tokens[receiver] += piece
    draft.tokens[donor] -= piece
    draft.left[expert] -= piece
    draft.largest[donor] = _largest(layer, draft, donor)


@part
def _largest(layer: Layer, draft: Draft, rank: int) -> int:
    """The local expert with the most pairs left, the lowest id between equals."""
    largest = int(layer.local[rank, 0])
    for expert in layer.local[rank]:
        if draft.left[expert] > draft.left[largest]:
            largest = int(expert)
    return largest


@part
def _highest(tokens: NDArray[np.int64]) -> int:
    highest = 0
    for count in tokens:
        highest = max(highest, count)
    return highest


@part
def _total(counts: NDArray[np.int64]) -> int:
    total = 0
    for count in counts:
        total += count
    return total


@part
def _layer(
    weight: NDArray[np.int64], home: NDArray[np.int32], ranks: int, ranks_per_node: int
) -> Layer:
    experts = len(weight)
    local = np.zeros((ranks, experts // ranks), np.int32)
    count = np.zeros(ranks, np.int64)
    home_load = np.zeros(ranks, np.int64)
    for expert in range(experts):
        rank = home[expert]
        local[rank, count[rank]] = expert
        count[rank] += 1
        home_load[rank] += weight[expert]
    node = np.zeros(ranks, np.int64)
    for rank in range(ranks):
        node[rank] = rank // ranks_per_node
    return Layer(weight, home, local, home_load, node, ranks_per_node)


@part
def _blank(ranks: int, experts: int, spare_slots: int) -> Draft:
    return Draft(
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(experts, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros((ranks, spare_slots), np.int32),
        np.zeros((ranks, spare_slots), np.int64),
    )


@part
def _reset(layer: Layer, draft: Draft) -> None:
    """No replicas: every expert is computed at home."""
    for expert in range(len(draft.left)):
        draft.left[expert] = layer.weight[expert]
    for rank in range(len(draft.tokens)):
        draft.tokens[rank] = layer.home_load[rank]
        draft.used[rank] = 0
        draft.largest[rank] = _largest(layer, draft, rank)


@part
def _copy(source: Draft, target: Draft) -> None:
    """Keep what a finished draft decided; the rest serves only while drafting."""
    for rank in range(len(source.used)):
        target.used[rank] = source.used[rank]
        for slot in range(source.used[rank]):
            target.expert[rank, slot] = source.expert[rank, slot]
            target.quota[rank, slot] = source.quota[rank, slot]
