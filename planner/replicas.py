"""Replicas and quotas of one micro-step: which spare slot holds which expert, for how many pairs.

For one layer, w_e pairs per expert, fixed homes and R spare slots per rank, find replicas and
quotas that bring every rank to at most a threshold T. All numbers are pairs, all integers.

Three greedy rules turn a threshold into a draft; each keeps every rank that was at or below T
there, so an (expert, receiver) pair is never met twice:

* lean: the fullest rank gives away exactly what it has above T, in pieces as large as the
  receivers allow. Few replicas, but slots are left partly empty.
* full: the fullest rank fills the emptiest receiver, even if it drops below T itself and becomes
  a receiver. No room is wasted.
* pull: the emptiest rank with a free slot fills it from the rank above T that offers the largest
  piece, between equal pieces from the fullest one. The pairing of the alias method (Walker 1977,
  Vose 1991) under a limit of R slots; it reaches the lowest thresholds.

A rank always offers its largest expert. Lean and full prefer a receiver in the donor's own node
between equal pieces; pull comes in a second form that prefers donors of the receiver's own node.
All remaining ties go to the lowest rank and the lowest expert, so a plan is a function of its
input.

Without a goal the threshold is bisected between the lower bound and the load without replicas,
with pull as the judge. With a goal, the goal is the threshold as long as any rule reaches it. At
the threshold found, every rule drafts once and the draft with the fewest replicas wins, between
equals the one with fewer replicas outside their home's node.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel

RULES = 4
LEAN: Any
FULL: Any
PULL_NEAR: Any
PULL: Any
LEAN, FULL, PULL_NEAR, PULL = np.arange(RULES)  # not int: numba would compile each value apart


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
        reached = _attempt(PULL, layer, draft, threshold)
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
    """Draft by every rule at ``threshold``, which is below what homes alone reach.

    Keeps the cheapest in ``best``, which has no replicas unless it reaches ``threshold`` itself.
    False if no draft does.
    """
    cheapest = _copies(layer, best)
    for rule in range(RULES):
        if rule == PULL_NEAR and layer.ranks_per_node == len(layer.home_load):
            continue
        if not _attempt(rule, layer, draft, threshold):
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
def _attempt(rule: int, layer: Layer, draft: Draft, threshold: int) -> bool:
    """Draft by one rule; True if every rank ends at or below ``threshold``."""
    _reset(layer, draft)
    if rule >= PULL_NEAR:
        return _pull(layer, draft, threshold, rule == PULL_NEAR)
    return _push(layer, draft, threshold, rule == LEAN)


@kernel
def _push(layer: Layer, draft: Draft, threshold: int, lean: bool) -> bool:
    """The fullest rank gives, until no rank is above the threshold or nobody can take."""
    slots = draft.expert.shape[1]
    while True:
        donor = 0
        for rank in range(1, len(draft.tokens)):
            if draft.tokens[rank] > draft.tokens[donor]:
                donor = rank
        need = draft.tokens[donor] - threshold
        if need <= 0:
            return True
        offer = draft.left[draft.largest[donor]]
        if lean:
            offer = min(offer, need)
        receiver = -1
        piece, near, room = 0, False, 0
        for rank in range(len(draft.tokens)):
            rank_room = threshold - draft.tokens[rank]
            if rank_room <= 0 or draft.used[rank] == slots:
                continue
            rank_piece = min(offer, rank_room)
            rank_near = _near(layer, rank, donor)
            # Between equal pieces: own node first, then the tightest fit.
            if (rank_piece, rank_near, -rank_room) > (piece, near, -room):
                receiver = rank
                piece, near, room = rank_piece, rank_near, rank_room
        if receiver < 0:
            return False
        _give(layer, draft, donor, receiver, piece)


@kernel
def _pull(layer: Layer, draft: Draft, threshold: int, prefer_near: bool) -> bool:
    """The emptiest rank takes, until no rank is above the threshold or no slot is free."""
    slots = draft.expert.shape[1]
    while True:
        receiver = -1
        above = False
        for rank in range(len(draft.tokens)):
            if draft.tokens[rank] > threshold:
                above = True
            elif draft.used[rank] < slots and (
                receiver < 0 or draft.tokens[rank] < draft.tokens[receiver]
            ):
                receiver = rank
        if not above:
            return True
        if receiver < 0 or draft.tokens[receiver] == threshold:
            return False
        room = threshold - draft.tokens[receiver]
        donor = -1
        piece, near, tokens = 0, False, 0
        for rank in range(len(draft.tokens)):
            rank_tokens = draft.tokens[rank]
            if rank_tokens <= threshold:
                continue
            rank_piece = min(room, draft.left[draft.largest[rank]])
            rank_near = prefer_near and _near(layer, rank, receiver)
            if (rank_piece, rank_near, rank_tokens) > (piece, near, tokens):
                donor = rank
                piece, near, tokens = rank_piece, rank_near, rank_tokens
        _give(layer, draft, donor, receiver, piece)


@kernel
def _give(layer: Layer, draft: Draft, donor: int, receiver: int, piece: int) -> None:
    """Put a replica of the donor's largest expert with ``piece`` pairs on the receiver."""
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
