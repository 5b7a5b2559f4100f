"""Replicas and quotas of one micro-step: which spare slot holds which expert, for how many pairs.

For one layer, w_e pairs per expert, fixed homes and R spare slots per rank, find replicas and
quotas that bring every rank to at most a threshold T. All numbers are pairs, all integers.

A draft moves one piece after another from a rank above T, the donor, to a rank below T with a free
slot, the receiver, until no rank is above T. The donor always offers its largest expert, the
receiver never rises above T. Each move is the first of these that is possible:

* match: the donor gives exactly what it has above T to one receiver with room for all of it. Of
  all such pairs the one with the least waste, the room left over. Waste counts only up to a share
  of the slack, the room that the ranks below T have beyond what the ranks above T must give. Each
  match settles two ranks with one replica, so many matches mean few replicas.
* pull: the emptiest receiver fills up, from the donor that offers the largest piece, between equal
  pieces from the fullest. The donor may drop below T and become a receiver: no room is wasted.
  This is the pairing of the alias method (Walker 1977, Vose 1991) under a limit of R slots.

A rule says how large a share of the slack a match may waste (none at all: only pulls) and whether
pairs within a node come first, before less waste and fuller donors. All remaining ties go to the
lowest rank and the lowest expert, so a plan is a function of its input.

Without a goal the threshold is bisected between the lower bound and the load without replicas,
with pulls alone as the judge: they reach the lowest thresholds. With a goal, the goal is the
threshold as long as any rule reaches it. At the threshold found, every rule drafts once and the
draft with the fewest replicas wins, between equals the one with fewer replicas outside their
home's node, between equals the earlier rule.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel

# (share of the slack a match may waste, in quarters; own node first), in the order of trial.
# Values of numpy, not int and bool: numba would compile a kernel for each of those apart.
RULES = np.array([[2, 1], [2, 0], [4, 0], [0, 1], [0, 0]])
JUDGE = RULES[-1]


class Layer(NamedTuple):
    """What a draft is made from: one layer's loads and homes."""

    weight: NDArray[np.int64]  # [E] pairs per expert
    home: NDArray[np.int32]  # [E]
    local: NDArray[np.int32]  # [P, E / P] experts at home on each rank, ascending
    home_load: NDArray[np.int64]  # [P] pairs per rank without replicas
    ranks_per_node: int


class Draft(NamedTuple):
    """A placement under construction, and what is left for the homes."""

    tokens: NDArray[np.int64]  # [P] pairs each rank computes
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
    while True:
        excess, slack = _slack(draft, threshold)
        if excess == 0:
            return True
        if slack < 0:
            return False
        if quarters > 0 and _match(layer, draft, threshold, slack * quarters // 4, near_first):
            continue
        if not _pull(layer, draft, threshold, near_first):
            return False


@kernel
def _slack(draft: Draft, threshold: int) -> tuple[int, int]:
    """Pairs above the threshold, and the room below it, in free slots, beyond those."""
    slots = draft.expert.shape[1]
    excess = 0
    room = 0
    for rank in range(len(draft.tokens)):
        above = draft.tokens[rank] - threshold
        if above > 0:
            excess += above
        elif draft.used[rank] < slots:
            room -= above
    return excess, room - excess


@kernel
def _match(layer: Layer, draft: Draft, threshold: int, most_waste: int, near_first: int) -> bool:
    """Settle one donor with one receiver; False if no pair wastes at most ``most_waste``."""
    slots = draft.expert.shape[1]
    donor, receiver = -1, -1
    near, waste = 0, most_waste + 1
    for giver in range(len(draft.tokens)):
        need = draft.tokens[giver] - threshold
        if need <= 0 or draft.left[draft.largest[giver]] < need:
            continue
        for taker in range(len(draft.tokens)):
            pair_waste = threshold - draft.tokens[taker] - need
            if pair_waste < 0 or pair_waste > most_waste or draft.used[taker] == slots:
                continue
            pair_near = near_first * _near(layer, taker, giver)
            if pair_near > near or (pair_near == near and pair_waste < waste):
                donor, receiver = giver, taker
                near, waste = pair_near, pair_waste
    if donor < 0:
        return False
    _give(layer, draft, donor, receiver, draft.tokens[donor] - threshold)
    return True


@kernel
def _pull(layer: Layer, draft: Draft, threshold: int, near_first: int) -> bool:
    """Fill one slot of the emptiest receiver; False if there is no receiver."""
    slots = draft.expert.shape[1]
    receiver = -1
    for rank in range(len(draft.tokens)):
        if (
            draft.tokens[rank] < threshold
            and draft.used[rank] < slots
            and (receiver < 0 or draft.tokens[rank] < draft.tokens[receiver])
        ):
            receiver = rank
    if receiver < 0:
        return False
    room = threshold - draft.tokens[receiver]
    donor = -1
    best = (0, 0, 0)
    for rank in range(len(draft.tokens)):
        if draft.tokens[rank] > threshold:
            piece = min(room, draft.left[draft.largest[rank]])
            near = near_first * _near(layer, rank, receiver)
            if (piece, near, draft.tokens[rank]) > best:
                donor = rank
                best = (piece, near, draft.tokens[rank])
    _give(layer, draft, donor, receiver, best[0])
    return True


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
def _near(layer: Layer, one: int, other: int) -> bool:
    """True if two ranks share a node."""
    return one // layer.ranks_per_node == other // layer.ranks_per_node


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
    return Layer(weight, home, local, home_load, ranks_per_node)


@kernel
def _blank(ranks: int, experts: int, spare_slots: int) -> Draft:
    return Draft(
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
