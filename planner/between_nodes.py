"""Between nodes: which replicas cross nodes, before anything moves inside one.

Two things make a replica in another node worth its copy. It takes pairs that originate there and
need not travel any more; and it takes load off a node that has more than its ranks can share. For
one layer and a threshold T of pairs a rank:

1. Near tokens. An expert's pairs that originate in another node than its home's are a candidate.
   From the most pairs down to ``worth``, each gets a replica in its node, on the rank with the
   tightest room that suffices, else with the largest. The replica takes the candidate's pairs, or
   what its home has above T if that is more.
2. Even nodes. As long as a node has more than T for each of its ranks, its piece goes to the node
   with the fewest pairs: of all experts at home in the fullest node, the one that brings most, and
   between equals keeps most pairs in the node they come from. It stops half of a node's share of
   the slack below T, so that there is slack within the node too.

Slack is the room below T over all ranks. A replica that takes a rank's last slot wastes the room it
does not fill; if a candidate would waste more than its fair part of the slack, it fills its rank
instead, and if it cannot, it is passed over. No rank is brought above T that was not there before.

All numbers are integers; ties go to the lowest rank, node and expert. With a slack of less than
one pair a rank nothing is chosen here: then pulls over all ranks (``foremoe.planner.draft``) do
it at once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part


class State(NamedTuple):
    """A layer while its pieces are moved across nodes."""

    home: NDArray[np.int32]  # [E]
    origin: NDArray[np.int64]  # [N, E] pairs that originate in each node
    left: NDArray[np.int64]  # [E] pairs still with the home
    tokens: NDArray[np.int64]  # [P] pairs each rank computes
    used: NDArray[np.int64]  # [P] spare slots taken
    expert: NDArray[np.int32]  # [P, R]
    quota: NDArray[np.int64]  # [P, R]
    ranks_per_node: int
    threshold: int


@kernel
def between_nodes(
    origin: NDArray[np.int64],
    home: NDArray[np.int32],
    threshold: NDArray[np.int64],
    worth: NDArray[np.int64],
    ranks: int,
    spare_slots: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas outside their home's node, and their quotas, for every layer of a micro-step.

    origin: int64 ``[L, N, E]``, pairs that originate in each node. home: int32 ``[L, E]``.
    threshold: int64 ``[L]``, pairs that a rank may have.
    worth: int64 ``[L]``, pairs that a replica must keep in their node, at least 1.
    Returns replica_expert int32 ``[L, P, R]`` (-1 for an empty slot) and quota int64 ``[L, P, R]``.
    """
    layers, nodes, experts = origin.shape
    replica_expert = np.full((layers, ranks, spare_slots), -1, np.int32)
    quota = np.zeros((layers, ranks, spare_slots), np.int64)
    for layer in range(layers):
        left = np.zeros(experts, np.int64)
        tokens = np.zeros(ranks, np.int64)
        for expert in range(experts):
            for node in range(nodes):
                left[expert] += origin[layer, node, expert]
            tokens[home[layer, expert]] += left[expert]
        state = State(
            home[layer],
            origin[layer].copy(),
            left,
            tokens,
            np.zeros(ranks, np.int64),
            replica_expert[layer],
            quota[layer],
            ranks // nodes,
            threshold[layer],
        )
        if spare_slots > 0 and tokens.max() > threshold[layer] and _slack(state) >= ranks:
            _near_tokens(state, worth[layer])
            _even_nodes(state)
    return replica_expert, quota


@part
def _near_tokens(state: State, worth: int) -> None:
    nodes, experts = state.origin.shape
    places = np.empty(nodes * experts, np.int64)
    pairs = np.empty(nodes * experts, np.int64)
    count = 0
    for node in range(nodes):
        for expert in range(experts):
            outside = state.home[expert] // state.ranks_per_node != node
            if outside and state.origin[node, expert] >= worth:
                places[count] = node * experts + expert
                pairs[count] = -state.origin[node, expert]
                count += 1
    budget = _slack(state) // 2
    for index in np.argsort(pairs[:count], kind="mergesort"):
        node, expert = places[index] // experts, places[index] % experts
        above = state.tokens[state.home[expert]] - state.threshold
        wanted = min(state.left[expert], max(state.origin[node, expert], above))
        receiver = _receiver(state, node, expert, wanted)
        if receiver < 0 or wanted < worth:
            continue
        room = state.threshold - state.tokens[receiver]
        last = state.used[receiver] + 1 == state.expert.shape[1]
        fair = _fair_part(budget, room, _room(state))
        piece = min(wanted, room)
        if last and room - piece > fair:
            piece = min(state.left[expert], room)
        if piece < worth or (last and room - piece > fair):
            continue
        budget -= room - piece if last else 0
        _give(state, expert, receiver, piece)


@part
def _even_nodes(state: State) -> None:
    """Move pieces until each node could be at the threshold within, or nothing can move."""
    ranks, width = len(state.tokens), state.ranks_per_node
    node_threshold = state.threshold * width - max(_slack(state), 0) // (2 * (ranks // width))
    while True:
        fullest, emptiest = 0, -1
        most, least = 0, 2**62
        for start in range(0, ranks, width):
            tokens = state.tokens[start : start + width].sum()
            room = 0
            for rank in range(start, start + width):
                room += _rank_room(state, rank)
            if tokens > most:
                fullest, most = start, tokens
            if tokens < least and room > 0:
                emptiest, least = start, tokens
        wanted = min(most - node_threshold, node_threshold - least)
        if emptiest < 0 or wanted <= 0 or most <= state.threshold * width:
            return
        node = emptiest // width
        best = -1
        best_piece, best_near = 0, 0
        for expert in range(len(state.home)):
            if state.home[expert] // width == fullest // width:
                piece = min(wanted, state.left[expert])
                near = min(piece, state.origin[node, expert])
                more = piece > best_piece or (piece == best_piece and near > best_near)
                if more and _receiver(state, node, expert, piece) >= 0:
                    best, best_piece, best_near = expert, piece, near
        if best < 0:
            return
        receiver = _receiver(state, node, best, best_piece)
        room = state.threshold - state.tokens[receiver]
        piece = min(best_piece, room)
        last = state.used[receiver] + 1 == state.expert.shape[1]
        if last and room - piece > _fair_part(_slack(state) // 2, room, _room(state)):
            piece = min(state.left[best], room)
        _give(state, best, receiver, piece)


@part
def _receiver(state: State, node: int, expert: int, wanted: int) -> int:
    """The rank of a node with the tightest room that is enough, else the largest; -1 for none."""
    start = node * state.ranks_per_node
    receiver, best = -1, 0
    for rank in range(start, start + state.ranks_per_node):
        room = _rank_room(state, rank)
        held = False
        for slot in range(state.used[rank]):
            held = held or state.expert[rank, slot] == expert
        if room > 0 and not held and ((wanted <= room < best) or (best < wanted and best < room)):
            receiver, best = rank, room
    return receiver


@part
def _give(state: State, expert: int, receiver: int, piece: int) -> None:
    slot = state.used[receiver]
    state.expert[receiver, slot] = expert
    state.quota[receiver, slot] = piece
    state.used[receiver] += 1
    state.tokens[receiver] += piece
    state.tokens[state.home[expert]] -= piece
    state.left[expert] -= piece
    node = receiver // state.ranks_per_node
    state.origin[node, expert] = max(state.origin[node, expert] - piece, 0)


@part
def _fair_part(budget: int, room: int, total: int) -> int:
    """``budget * room // total``, exact below 2**31."""
    unit = (max(budget, total) >> 31) + 1
    return (budget // unit) * (room // unit) // max(total // unit, 1) * unit


@part
def _rank_room(state: State, rank: int) -> int:
    """Pairs a rank can take in a free slot."""
    free = state.used[rank] < state.expert.shape[1]
    return max(state.threshold - state.tokens[rank], 0) if free else 0


@part
def _room(state: State) -> int:
    room = 0
    for rank in range(len(state.tokens)):
        room += _rank_room(state, rank)
    return room


@part
def _slack(state: State) -> int:
    """Room over all ranks beyond what the ranks above the threshold must give."""
    return state.threshold * len(state.tokens) - int(state.tokens.sum())
