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

A rule says how large a share of the slack a match may waste (none at all: only pulls) and whether
pairs within a node come first, before less waste and fuller donors. All remaining ties go to the
lowest rank and the lowest expert, so a plan is a function of its input.

Without a goal the threshold is bisected between the lower bound and the load without replicas,
with pulls alone as the judge: they reach the lowest thresholds. With a goal, the goal is the
threshold as long as any rule reaches it. At the threshold found, every rule drafts once (pulls
alone only if nothing else got there) and the draft with the fewest replicas wins, between equals
the one with fewer replicas outside their home's node, between equals the earlier one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel

# (share of the slack a match may waste, in quarters; own node first), in the order of trial.
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


@kernel
def _plan_layer(layer: Layer, draft: Draft, best: Draft, bound: int, goal: int) -> None:
    """Leave the chosen draft in ``best``."""
    _reset(layer, best)
    high = _highest(layer.home_load)
    threshold = max(bound, goal)
    if high <= threshold:
        return
    if goal > 0 and _fewest_replicas(layer, draft, best, threshold):
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
    _fewest_replicas(layer, draft, best, high)


@kernel
def _fewest_replicas(layer: Layer, draft: Draft, best: Draft, threshold: int) -> bool:
    """Draft by every rule at ``threshold``, which is not above what homes alone reach.

    Keeps the cheapest in ``best``, which has no replicas unless it reaches ``threshold`` itself.
    False if no draft does.
    """
    cheapest = _copies(layer, best)
    for quarters, near_first in RULES:
        if near_first and layer.ranks_per_node == len(layer.home_load):
            continue
        if quarters == 0 and cheapest[0] > 0:
            continue
        if not _attempt(layer, draft, threshold, quarters, near_first):
            continue
        copies = _copies(layer, draft)
        if cheapest[0] == 0 or copies < cheapest:
            cheapest = copies
            _copy(draft, best)
    return cheapest[0] > 0


@kernel
def _copies(layer: Layer, draft: Draft) -> tuple[int, int]:
    """Replicas, and how many of them lie outside their home's node."""
    total = 0
    outside = 0
    for rank in range(len(draft.used)):
        for slot in range(draft.used[rank]):
            total += 1
            if not _near(layer, rank, layer.home[draft.expert[rank, slot]]):
                outside += 1
    return total, outside


@kernel
def _attempt(layer: Layer, draft: Draft, threshold: int, quarters: int, near_first: int) -> bool:
    """Draft by one rule; True if every rank ends at or below ``threshold``."""
    _reset(layer, draft)
    for rank in range(len(draft.tokens)):
        _settle(draft, rank, threshold)
    while True:
        excess = _total(draft.need)
        slack = _total(draft.room) - excess
        if excess == 0:
            return True
        if slack < 0:
            return False
        donor, receiver = -1, -1
        if quarters > 0 and slack >= len(draft.tokens):
            donor, receiver = _match(layer, draft, slack * quarters // 4, near_first)
        if donor < 0:
            donor, receiver = _pull(layer, draft, near_first)
            piece = min(draft.room[receiver], draft.left[draft.largest[donor]])
        else:
            piece = draft.need[donor]
        _give(layer, draft, donor, receiver, piece)
        _settle(draft, donor, threshold)
        _settle(draft, receiver, threshold)


@kernel
def _settle(draft: Draft, rank: int, threshold: int) -> None:
    """Note what a rank must give or can take."""
    above = draft.tokens[rank] - threshold
    free = draft.used[rank] < draft.expert.shape[1]
    draft.need[rank] = max(above, 0)
    draft.room[rank] = max(-above, 0) if free else 0


@kernel
def _match(layer: Layer, draft: Draft, most_waste: int, near_first: int) -> tuple[int, int]:
    """The donor and receiver that settle each other best; -1 if all waste more."""
    ranks = len(draft.tokens)
    for width in (layer.ranks_per_node, ranks):
        if width < ranks and not near_first:
            continue
        donor, first = -1, 0
        waste = most_waste + 1
        for rank in range(ranks):
            if draft.need[rank] == 0 or draft.left[draft.largest[rank]] < draft.need[rank]:
                continue
            start = layer.node[rank] * width if width < ranks else 0
            rank_waste = _least_waste(draft.room[start : start + width], draft.need[rank])
            if rank_waste < waste:
                donor, first = rank, start
                waste = rank_waste
        if donor >= 0:
            receiver = first
            while draft.room[receiver] - draft.need[donor] != waste:
                receiver += 1
            return donor, receiver
    return -1, -1


@kernel
def _least_waste(room: NDArray[np.int64], need: int) -> int:
    """The least that stays free where ``need`` fits; 2**63 - 1 if it fits nowhere."""
    waste = np.uint64(2**63 - 1)
    for taker in range(len(room)):
        # Where it does not fit, the difference wraps to more than 2**63: no branch, one vector.
        waste = min(waste, np.uint64(room[taker] - need))
    return int(np.int64(waste))


@kernel
def _pull(layer: Layer, draft: Draft, near_first: int) -> tuple[int, int]:
    """The donor with the largest piece for the emptiest receiver, and that receiver."""
    receiver = 0
    for rank in range(len(draft.room)):
        if draft.room[rank] > draft.room[receiver]:
            receiver = rank
    donor = -1
    best = (0, 0, 0)
    for rank in range(len(draft.need)):
        if draft.need[rank] > 0:
            piece = min(draft.room[receiver], draft.left[draft.largest[rank]])
            near = near_first * _near(layer, rank, receiver)
            if (piece, near, draft.need[rank]) > best:
                donor = rank
                best = (piece, near, draft.need[rank])
    return donor, receiver


@kernel
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


@kernel
def _largest(layer: Layer, draft: Draft, rank: int) -> int:
    """The local expert with the most pairs left, the lowest id between equals."""
    largest = int(layer.local[rank, 0])
    for expert in layer.local[rank]:
        if draft.left[expert] > draft.left[largest]:
            largest = int(expert)
    return largest


@kernel
def _highest(tokens: NDArray[np.int64]) -> int:
    highest = 0
    for count in tokens:
        highest = max(highest, count)
    return highest


@kernel
def _total(counts: NDArray[np.int64]) -> int:
    total = 0
    for count in counts:
        total += count
    return total


@kernel
def _near(layer: Layer, one: int, other: int) -> bool:
    """True if two ranks share a node."""
    return bool(layer.node[one] == layer.node[other])


@kernel
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


@kernel
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


@kernel
def _reset(layer: Layer, draft: Draft) -> None:
    """No replicas: every expert is computed at home."""
    for expert in range(len(draft.left)):
        draft.left[expert] = layer.weight[expert]
    for rank in range(len(draft.tokens)):
        draft.tokens[rank] = layer.home_load[rank]
        draft.used[rank] = 0
        draft.largest[rank] = _largest(layer, draft, rank)


@kernel
def _copy(source: Draft, target: Draft) -> None:
    """Keep what a finished draft decided; the rest serves only while drafting."""
    for rank in range(len(source.used)):
        target.used[rank] = source.used[rank]
        for slot in range(source.used[rank]):
            target.expert[rank, slot] = source.expert[rank, slot]
            target.quota[rank, slot] = source.quota[rank, slot]
