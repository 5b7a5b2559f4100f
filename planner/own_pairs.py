"""Own pairs: trades after which the ranks of a node compute more of the pairs that they have.

Within a node dispatch takes as long as the rank that receives, or sends, most pairs. Where compute
is even, that is the rank which computes the fewest of its own. It trades: pairs of an expert that a
replica on it serves go to another rank, and as many of another expert come from there, more of
which are its own. Both ranks compute as many pairs as before. Either expert must be hosted where it
goes to, or find a free slot; all of a replica's pairs go if its slot is to be that one.

The rank that computes most pairs of others makes the trade by which that falls furthest, as long as
there is one worth it; its partner must stay below what the rank had. All numbers are integers; ties
go to the lowest expert taken, partner and slot given, and to a part before all of it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part

WORTH = 128  # a trade is for at least this part of a rank's mean
NOWHERE = -1


class State(NamedTuple):
    """A layer while pairs are traded."""

    load: NDArray[np.int64]  # [P, E]
    home: NDArray[np.int32]  # [E]
    expert: NDArray[np.int32]  # [P, R]
    computed: NDArray[np.int64]  # [P, E] pairs that each rank computes
    foreign: NDArray[np.int64]  # [P] those of other ranks


class Trade(NamedTuple):
    """Pairs of ``given`` in a slot of the rank for as many of ``taken`` from its partner."""

    gain: int
    pairs: int
    slot: int
    taken: int
    partner: int


@kernel
def keep_own_pairs(
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas int32 and quotas int64 ``[L, P, R]`` with fewer pairs that change their rank.

    load: int64 ``[L, P, E]``. home: int32 ``[L, E]``. replica_expert, quota: ``[L, P, R]``, the
    choice to start from; left as they are. Every rank of the group is in one node.
    """
    layers, ranks, slots = quota.shape
    new_expert, new_quota = replica_expert.copy(), quota.copy()
    for layer in range(layers):
        state = _state(load[layer], home[layer], new_expert[layer], quota[layer])
        least = max(load[layer].sum() // (ranks * WORTH), 1)
        for _ in range(8 * ranks):
            rank = int(np.argmax(state.foreign))
            trade = _best(state, rank, least)
            if trade.pairs == 0:
                break
            _make(state, rank, trade)
        for rank in range(ranks):
            for slot in range(slots):
                expert = new_expert[layer, rank, slot]
                new_quota[layer, rank, slot] = state.computed[rank, expert] if expert >= 0 else 0
    return new_expert, new_quota


@part
def _state(
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> State:
    ranks, experts = load.shape
    computed = np.zeros((ranks, experts), np.int64)
    for source in range(ranks):
        for each in range(experts):
            computed[home[each], each] += load[source, each]
    for rank in range(ranks):
        for slot in range(expert.shape[1]):
            each = expert[rank, slot]
            if each >= 0:
                computed[rank, each] += quota[rank, slot]
                computed[home[each], each] -= quota[rank, slot]
    foreign = np.zeros(ranks, np.int64)
    for rank in range(ranks):
        for each in range(experts):
            foreign[rank] += max(computed[rank, each] - load[rank, each], 0)
    return State(load, home, expert, computed, foreign)


@part
def _best(state: State, rank: int, least: int) -> Trade:
    """The rank's best trade; of no pairs if none gains at least ``least``."""
    load, computed = state.load, state.computed
    best = Trade(least - 1, 0, NOWHERE, NOWHERE, NOWHERE)
    for taken in range(len(state.home)):
        own = load[rank, taken] - computed[rank, taken]
        if own <= best.gain:
            continue
        fits = _hosts(state, rank, taken) or _slot(state, rank, NOWHERE) != NOWHERE
        for partner in range(len(load)):
            if partner == rank or computed[partner, taken] <= best.gain:
                continue
            for slot in range(state.expert.shape[1]):
                given = 0 + state.expert[rank, slot]
                if given in (NOWHERE, taken):
                    continue
                whole = computed[rank, given]
                part_of = min(whole - load[rank, given], own, computed[partner, taken])
                for pairs in (part_of if fits else 0, whole):
                    if pairs <= best.gain or pairs > computed[partner, taken]:
                        continue
                    gain = state.foreign[rank] - _after(state, rank, given, taken, pairs)
                    if gain <= best.gain:
                        continue
                    if _after(state, partner, taken, given, pairs) >= state.foreign[rank]:
                        continue
                    if _takes(state, partner, given, taken, pairs):
                        best = Trade(gain, pairs, slot, taken, partner)
    return best


@part
def _after(state: State, rank: int, given: int, taken: int, pairs: int) -> int:
    """Pairs of others that a rank computes after a trade."""
    load, computed = state.load[rank], state.computed[rank]
    less = min(pairs, max(computed[given] - load[given], 0))
    more = pairs - min(pairs, max(load[taken] - computed[taken], 0))
    foreign: int = state.foreign[rank] - less + more
    return foreign


@part
def _takes(state: State, rank: int, expert: int, given: int, pairs: int) -> bool:
    """Whether a rank hosts an expert, or has a slot once it has given ``pairs`` of another."""
    if _hosts(state, rank, expert) or _slot(state, rank, NOWHERE) != NOWHERE:
        return True
    emptied: bool = state.home[given] != rank and state.computed[rank, given] == pairs
    return emptied


@part
def _make(state: State, rank: int, trade: Trade) -> None:
    given, taken = 0 + state.expert[rank, trade.slot], trade.taken
    state.foreign[trade.partner] = _after(state, trade.partner, taken, given, trade.pairs)
    state.foreign[rank] -= trade.gain
    for giver, expert, taker in ((rank, given, trade.partner), (trade.partner, taken, rank)):
        state.computed[giver, expert] -= trade.pairs
        state.computed[taker, expert] += trade.pairs
    for giver, lost in ((rank, given), (trade.partner, taken)):
        if state.home[lost] != giver and state.computed[giver, lost] == 0:
            state.expert[giver, _slot(state, giver, lost)] = NOWHERE
    for taker, expert in ((trade.partner, given), (rank, taken)):
        if not _hosts(state, taker, expert):
            state.expert[taker, _slot(state, taker, NOWHERE)] = expert


@part
def _hosts(state: State, rank: int, expert: int) -> bool:
    hosts: bool = state.home[expert] == rank or _slot(state, rank, expert) != NOWHERE
    return hosts


@part
def _slot(state: State, rank: int, expert: int) -> int:
    """The rank's first slot with that in it: an expert, or NOWHERE for nothing."""
    for slot in range(state.expert.shape[1]):
        if state.expert[rank, slot] == expert:
            return slot
    return NOWHERE
