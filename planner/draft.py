"""Drafts: how one layer's replicas and quotas are tried out at a threshold.

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

All ties go to the lowest rank and the lowest expert, so a plan is a function of its input. A rule
says how large a share of the slack a match may waste; none at all means only pulls.

On several nodes a rule with matches drafts every node within itself first, and what that leaves
over all ranks; a last slot that no piece of its node can fill waits for the latter. Pulls alone go
over all ranks at once. Between donors with equal pieces they take the one of the highest value: in
another node the pairs that originate in the receiver's node, in the own node what pays for a copy
across nodes, or nothing if the node still has to take in half of the receiver's room or more.

Parts of the kernels in ``foremoe.planner.replicas`` and ``inside_nodes``, which start the drafts
and choose between them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import part

RULES = (2, 4, 0)  # share of the slack a match may waste, in quarters, in the order of trial


class Layer(NamedTuple):
    """What a draft is made from: one layer's loads and homes."""

    weight: NDArray[np.int64]  # [E] pairs per expert
    local: NDArray[np.int32]  # [P, E / P] experts at home on each rank, ascending
    home_load: NDArray[np.int64]  # [P] pairs per rank without replicas
    home: NDArray[np.int32]  # [E]
    given_expert: NDArray[np.int32]  # [P, R] replicas that every draft starts from, -1 for none
    given_quota: NDArray[np.int64]  # [P, R]
    origin: NDArray[np.int64]  # [N, E] pairs that originate in each node
    worth: int  # pairs kept in their node that pay for a copy across nodes
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


@part
def attempt(
    layer: Layer, given: NDArray[np.int32], draft: Draft, threshold: int, quarters: int
) -> bool:
    """Draft by one rule; True if every rank ends at or below ``threshold``.

    Matches look within each node first, pulls alone over all ranks at once.
    """
    reset(layer, given, draft)
    ranks, width = len(draft.tokens), layer.ranks_per_node
    for rank in range(ranks):
        _settle(draft, rank, threshold)
    if width < ranks and quarters > 0:
        for start in range(0, ranks, width):
            _level_ranks(layer, draft, threshold, quarters, start, start + width)
    return _level_ranks(layer, draft, threshold, quarters, 0, ranks)


@part
def _level_ranks(
    layer: Layer, draft: Draft, threshold: int, quarters: int, start: int, end: int
) -> bool:
    """Match and pull among the ranks from ``start`` to ``end``; False if some stay above."""
    while True:
        excess = total(draft.need[start:end])
        room = total(draft.room[start:end])
        slack = room - excess
        if excess == 0:
            return True
        if room == 0 or (slack < 0 and end - start == len(draft.tokens)):
            return False
        donor = -1
        if quarters > 0 and slack >= end - start:
            donor, receiver, piece = _match(draft, slack * quarters // 4, start, end)
        if donor < 0:
            if layer.ranks_per_node == len(draft.tokens):
                donor, receiver, piece = _pull(draft)
            else:
                donor, receiver, piece = _pull_by_value(layer, draft, threshold, start, end)
        if donor < 0:
            return False
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
def _pull(draft: Draft) -> tuple[int, int, int]:
    """The donor with the largest piece for the emptiest receiver, that receiver, and the piece."""
    receiver = 0
    for rank in range(len(draft.room)):
        if draft.room[rank] > draft.room[receiver]:
            receiver = rank
    donor = -1
    best = (0, 0)
    for rank in range(len(draft.need)):
        if draft.need[rank] > 0:
            piece = min(draft.room[receiver], draft.left[draft.largest[rank]])
            if (piece, draft.need[rank]) > best:
                donor = rank
                best = (piece, draft.need[rank])
    return donor, receiver, best[0]


@part
def _pull_by_value(
    layer: Layer, draft: Draft, threshold: int, start: int, end: int
) -> tuple[int, int, int]:
    """The same on several nodes, by value between equal pieces; -1 if no slot can take anything.

    Within one node, a last slot waits for a piece that fills its rank.
    """
    largest = 0
    for rank in range(start, end):
        if draft.need[rank] > 0:
            largest = max(largest, draft.left[draft.largest[rank]])
    waits = end - start < len(draft.tokens)
    receiver, most = -1, 0
    for rank in range(start, end):
        last = draft.used[rank] + 1 == draft.expert.shape[1]
        if draft.room[rank] > most and not (waits and last and draft.room[rank] > largest):
            receiver, most = rank, draft.room[rank]
    if receiver < 0:
        return -1, -1, 0
    width = layer.ranks_per_node
    node = receiver // width
    short = threshold * width - total(draft.tokens[node * width : (node + 1) * width])
    value_within = 0 if 2 * short >= most else layer.worth
    donor = -1
    best = (0, 0, 0)
    for rank in range(start, end):
        if draft.need[rank] > 0:
            piece = min(most, draft.left[draft.largest[rank]])
            value = value_within
            if rank // width != node:
                value = min(piece, layer.origin[node, draft.largest[rank]])
            if (piece, value, draft.need[rank]) > best:
                donor = rank
                best = (piece, value, draft.need[rank])
    return donor, receiver, best[0]


@part
def _give(layer: Layer, draft: Draft, donor: int, receiver: int, piece: int) -> None:
    """Move ``piece`` pairs of the donor's largest expert to a replica on the receiver."""
    expert = draft.largest[donor]
    slot = 0
    while slot < draft.used[receiver] and draft.expert[receiver, slot] != expert:
        slot += 1
    if slot == draft.used[receiver]:
        draft.expert[receiver, slot] = expert
        draft.quota[receiver, slot] = 0
        draft.used[receiver] += 1
    draft.quota[receiver, slot] += piece
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
def highest(tokens: NDArray[np.int64]) -> int:
    highest = 0
    for count in tokens:
        highest = max(highest, count)
    return highest


@part
def total(counts: NDArray[np.int64]) -> int:
    total = 0
    for count in counts:
        total += count
    return total


@part
def layer_of(
    weight: NDArray[np.int64],
    home: NDArray[np.int32],
    given_expert: NDArray[np.int32],
    given_quota: NDArray[np.int64],
    origin: NDArray[np.int64],
    worth: int,
) -> Layer:
    ranks, experts = len(given_expert), len(weight)
    local = np.zeros((ranks, experts // ranks), np.int32)
    count = np.zeros(ranks, np.int64)
    home_load = np.zeros(ranks, np.int64)
    for expert in range(experts):
        rank = home[expert]
        local[rank, count[rank]] = expert
        count[rank] += 1
        home_load[rank] += weight[expert]
    ranks_per_node = ranks // len(origin)
    return Layer(
        weight, local, home_load, home, given_expert, given_quota, origin, worth, ranks_per_node
    )


@part
def blank(ranks: int, experts: int, spare_slots: int) -> Draft:
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
def reset(layer: Layer, given: NDArray[np.int32], draft: Draft) -> None:
    """Only the replicas that are given: all else is computed at home."""
    ranks, slots = layer.given_expert.shape
    for expert in range(len(draft.left)):
        draft.left[expert] = layer.weight[expert]
    for rank in range(ranks):
        draft.tokens[rank] = layer.home_load[rank]
        draft.used[rank] = 0
    for rank in range(ranks):
        for slot in range(slots):
            expert, piece = given[rank, slot], layer.given_quota[rank, slot]
            if expert >= 0:
                draft.expert[rank, slot] = expert
                draft.quota[rank, slot] = piece
                draft.used[rank] += 1
                draft.left[expert] -= piece
                draft.tokens[rank] += piece
                draft.tokens[layer.home[expert]] -= piece
    for rank in range(ranks):
        draft.largest[rank] = _largest(layer, draft, rank)


@part
def copy(source: Draft, target: Draft) -> None:
    """Keep what a finished draft decided; the rest serves only while drafting."""
    for rank in range(len(source.used)):
        target.used[rank] = source.used[rank]
        for slot in range(source.used[rank]):
            target.expert[rank, slot] = source.expert[rank, slot]
            target.quota[rank, slot] = source.quota[rank, slot]


@part
def write(draft: Draft, replica_expert: NDArray[np.int32], quota: NDArray[np.int64]) -> None:
    for rank in range(len(draft.used)):
        for slot in range(draft.used[rank]):
            replica_expert[rank, slot] = draft.expert[rank, slot]
            quota[rank, slot] = draft.quota[rank, slot]
