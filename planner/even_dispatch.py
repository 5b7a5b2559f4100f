"""Even dispatch: quotas that spare the rank which receives most from other nodes.

Between nodes, dispatch takes as long as the rank that receives (or sends) most pairs from afar, and
that may be more than all else of a layer. Replicas and quotas chosen for even compute leave it
uneven: of two ranks with as many pairs, one has them from its own node. For one layer, from a given
choice, this lowers the most pairs F that a rank receives from afar, as long as no rank gets more
than ``CAP`` percent of the mean, or what some rank has already.

Hosts in a node serve as many of its own pairs of an expert as they have quota for, in equal shares;
the rest of a quota comes from afar. At a tried F, the rank that receives most gives a piece of an
expert away, until no rank is above F:

* near: to a node where pairs of that expert originate that nobody there serves yet, on a rank that
  hosts it, or on one with a free slot if the piece is worth a copy. There they are not from afar.
* far: to another host of the expert, anywhere, that stays at or below F.

The largest piece is given, of equal ones near to a host before a new replica before far. F is
bisected, ``STEPS`` times. All numbers are integers; ties go to the lowest expert, node and rank.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part

CAP = 115  # percent of the mean that compute may rise to
STEPS = 6
WORTH = 64  # a new replica serves at least this part of a rank's mean
AT_HOME, NOWHERE = -1, -2  # in place of a slot
FAR, COPY, NEAR = 0, 1, 2  # kinds of moves


class State(NamedTuple):
    """A layer while pieces are moved."""

    home: NDArray[np.int32]  # [E]
    local: NDArray[np.int64]  # [P, E / P] experts at home on each rank, ascending
    expert: NDArray[np.int32]  # [P, R]
    quota: NDArray[np.int64]  # [P, R]
    left: NDArray[np.int64]  # [E] pairs with the home
    tokens: NDArray[np.int64]  # [P] pairs each rank computes
    far: NDArray[np.int64]  # [P] those that come from other nodes
    far_home: NDArray[np.int64]  # [E] of the home's pairs
    far_slot: NDArray[np.int64]  # [P, R] of a replica's pairs
    unserved: NDArray[np.int64]  # [N, E] pairs that leave the node they originate in
    ranks_per_node: int


class Move(NamedTuple):
    """A piece of an expert from a rank's slot to another rank."""

    piece: int
    kind: int
    expert: int
    slot: int  # the giver's, or AT_HOME
    receiver: int


@kernel
def even_dispatch(
    origin: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas int32 and quotas int64 ``[L, P, R]`` with a lower maximum of pairs from afar.

    origin: int64 ``[L, N, E]``, pairs that originate in each node. home: int32 ``[L, E]``.
    replica_expert, quota: ``[L, P, R]``, the choice to start from; left as they are.
    """
    layers, ranks, _ = quota.shape
    better_expert, better_quota = replica_expert.copy(), quota.copy()
    for layer in range(layers):
        state = _state(origin[layer], home[layer], replica_expert[layer], quota[layer])
        mean = state.tokens.sum() // ranks
        at_home = np.zeros(ranks, np.int64)
        for expert in range(home.shape[1]):
            at_home[home[layer, expert]] += origin[layer, :, expert].sum()
        most_tokens = max(state.tokens.max(), min(mean * CAP // 100, at_home.max()))
        low, high = state.far.sum() // ranks * 3 // 4, state.far.max()
        for _ in range(STEPS):
            if low >= high:
                break
            middle = (low + high) // 2
            state = _state(origin[layer], home[layer], replica_expert[layer], quota[layer])
            if _reach(state, middle, most_tokens, max(mean // WORTH, 1)):
                high = middle
                better_expert[layer], better_quota[layer] = state.expert, state.quota
            else:
                low = middle + 1
    return better_expert, better_quota


@part
def _state(
    origin: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> State:
    nodes, experts = origin.shape
    ranks, slots = quota.shape
    width = ranks // nodes
    left = origin.sum(axis=0)
    hosted = np.zeros((nodes, experts), np.int64)
    tokens = np.zeros(ranks, np.int64)
    for rank in range(ranks):
        for slot in range(slots):
            expert = replica_expert[rank, slot]
            if expert >= 0:
                left[expert] -= quota[rank, slot]
                hosted[rank // width, expert] += quota[rank, slot]
                tokens[rank] += quota[rank, slot]
    local = np.zeros((ranks, experts // ranks), np.int64)
    count = np.zeros(ranks, np.int64)
    for expert in range(experts):
        rank = home[expert]
        local[rank, count[rank]] = expert
        count[rank] += 1
        hosted[rank // width, expert] += left[expert]
        tokens[rank] += left[expert]
    far = np.zeros(ranks, np.int64)
    far_home = np.zeros(experts, np.int64)
    far_slot = np.zeros((ranks, slots), np.int64)
    for expert in range(experts):
        node = home[expert] // width
        far_home[expert] = _far_part(left[expert], origin[node, expert], hosted[node, expert])
        far[home[expert]] += far_home[expert]
    for rank in range(ranks):
        for slot in range(slots):
            expert = replica_expert[rank, slot]
            if expert >= 0:
                near, here = origin[rank // width, expert], hosted[rank // width, expert]
                far_slot[rank, slot] = _far_part(quota[rank, slot], near, here)
                far[rank] += far_slot[rank, slot]
    return State(
        home,
        local,
        replica_expert.copy(),
        quota.copy(),
        left,
        tokens,
        far,
        far_home,
        far_slot,
        np.maximum(origin - hosted, 0),
        width,
    )


@part
def _far_part(pairs: int, near: int, hosted: int) -> int:
    """Of a host's pairs, if ``near`` of its node's ``hosted`` are its own; exact below 2**31."""
    if near >= hosted:
        return 0
    unit = (hosted >> 31) + 1
    return pairs - (pairs // unit) * (near // unit) // (hosted // unit)


@part
def _reach(state: State, most_far: int, most_tokens: int, worth: int) -> bool:
    """Move pieces until no rank has more than ``most_far`` from afar; False if one has to."""
    for _ in range(8 * len(state.far)):
        giver = 0
        for rank in range(len(state.far)):
            if state.far[rank] > state.far[giver]:
                giver = rank
        if state.far[giver] <= most_far:
            return True
        move = _largest(state, giver, most_far, most_tokens, worth)
        if move.piece == 0:
            return False
        _make(state, giver, move)
    return False


@part
def _largest(state: State, giver: int, most_far: int, most_tokens: int, worth: int) -> Move:
    """The best move away from a rank; a piece of 0 if there is none."""
    experts, slots = state.local.shape[1], state.expert.shape[1]
    best = Move(0, FAR, -1, NOWHERE, -1)
    for place in range(experts + slots):
        slot = AT_HOME if place < experts else place - experts
        expert = int(state.local[giver, place] if slot == AT_HOME else state.expert[giver, slot])
        if expert < 0:
            continue
        from_afar = state.far_home[expert] if slot == AT_HOME else state.far_slot[giver, slot]
        wanted = min(state.far[giver] - most_far, from_afar)
        if wanted == 0 or wanted < best.piece:
            continue
        for rank in range(len(state.far)):
            unserved = state.unserved[rank // state.ranks_per_node, expert]
            piece = min(wanted, most_tokens - state.tokens[rank])
            held = _slot_of(state, rank, expert)
            if held == NOWHERE:
                piece, kind = min(piece, unserved), COPY
                if piece < worth or _free_slot(state, rank) == NOWHERE:
                    continue
            elif unserved > 0:
                piece, kind = min(piece, unserved), NEAR
            else:
                piece, kind = min(piece, most_far - state.far[rank]), FAR
            if rank != giver and (piece, kind) > (best.piece, best.kind) and piece > 0:
                best = Move(piece, kind, expert, slot, rank)
    return best


@part
def _make(state: State, giver: int, move: Move) -> None:
    if move.slot == AT_HOME:
        state.left[move.expert] -= move.piece
        state.far_home[move.expert] -= move.piece
    else:
        state.quota[giver, move.slot] -= move.piece
        state.far_slot[giver, move.slot] -= move.piece
        if state.quota[giver, move.slot] == 0:
            state.expert[giver, move.slot] = -1
    state.tokens[giver] -= move.piece
    state.far[giver] -= move.piece
    slot = _slot_of(state, move.receiver, move.expert)
    if slot == NOWHERE:
        slot = _free_slot(state, move.receiver)
        state.expert[move.receiver, slot] = move.expert
    from_afar = move.piece if move.kind == FAR else 0
    state.tokens[move.receiver] += move.piece
    state.far[move.receiver] += from_afar
    state.unserved[move.receiver // state.ranks_per_node, move.expert] -= move.piece - from_afar
    if slot == AT_HOME:
        state.left[move.expert] += move.piece
        state.far_home[move.expert] += from_afar
    else:
        state.quota[move.receiver, slot] += move.piece
        state.far_slot[move.receiver, slot] += from_afar


@part
def _slot_of(state: State, rank: int, expert: int) -> int:
    """Where a rank hosts an expert."""
    if state.home[expert] == rank:
        return AT_HOME
    for slot in range(state.expert.shape[1]):
        if state.expert[rank, slot] == expert:
            return slot
    return NOWHERE


@part
def _free_slot(state: State, rank: int) -> int:
    for slot in range(state.expert.shape[1]):
        if state.expert[rank, slot] < 0:
            return slot
    return NOWHERE
