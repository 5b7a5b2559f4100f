"""``foremoe.planner.own_pairs`` for one layer, in plain Python: trades are made and looked at."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.own_pairs import WORTH

EMPTY = -1


@dataclass(slots=True)
class _Layer:
    """load: pairs by rank and expert. home: by expert. slots: ``[rank][slot]``, an expert or EMPTY.

    computed: pairs that each rank computes, by rank and expert.
    """

    load: list[list[int]]
    home: list[int]
    slots: list[list[int]]
    computed: list[list[int]]

    def foreign(self, rank: int) -> int:
        pairs = zip(self.computed[rank], self.load[rank], strict=True)
        return sum(max(computed - own, 0) for computed, own in pairs)

    def hosts(self, rank: int, expert: int) -> bool:
        return self.home[expert] == rank or expert in self.slots[rank]

    def traded(self, rank: int, slot: int, taken: int, partner: int, pairs: int) -> "_Layer | None":
        """The layer after a trade; None where it cannot be made."""
        after, given = deepcopy(self), self.slots[rank][slot]
        for giver, expert, taker in ((rank, given, partner), (partner, taken, rank)):
            after.computed[giver][expert] -= pairs
            after.computed[taker][expert] += pairs
            if after.computed[giver][expert] < 0:
                return None
            if expert in after.slots[giver] and after.computed[giver][expert] == 0:
                after.slots[giver][after.slots[giver].index(expert)] = EMPTY
        for taker, expert in ((partner, given), (rank, taken)):
            if not after.hosts(taker, expert):
                if EMPTY not in after.slots[taker]:
                    return None
                after.slots[taker][after.slots[taker].index(EMPTY)] = expert
        return after


def keep_own_pairs(
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas int32 and quotas int64 ``[P, R]`` of one layer.

    load: int64 ``[P, E]``. home: int32 ``[E]``. replica_expert, quota: ``[P, R]``.
    """
    ranks, experts = load.shape
    computed = [[0] * experts for _ in range(ranks)]
    for expert, rank in enumerate(home.tolist()):
        computed[rank][expert] = int(load[:, expert].sum())
    for rank, row in enumerate(replica_expert.tolist()):
        for slot, expert in enumerate(row):
            if expert != EMPTY:
                computed[rank][expert] += int(quota[rank, slot])
                computed[int(home[expert])][expert] -= int(quota[rank, slot])
    layer = _Layer(load.tolist(), home.tolist(), replica_expert.tolist(), computed)
    least = max(int(load.sum()) // (ranks * WORTH), 1)
    for _ in range(8 * ranks):
        foreign = [layer.foreign(rank) for rank in range(ranks)]
        rank = foreign.index(max(foreign))
        gain, better = max(_trades(layer, rank), key=lambda trade: trade[0], default=(0, layer))
        if gain < least:
            break
        layer = better
    served = [
        [0 if expert == EMPTY else layer.computed[rank][expert] for expert in row]
        for rank, row in enumerate(layer.slots)
    ]
    return np.array(layer.slots, np.int32), np.array(served, np.int64)


def _trades(layer: _Layer, rank: int) -> Iterator[tuple[int, _Layer]]:
    """What a rank may trade: by how much its foreign pairs fall, and the layer then."""
    before = layer.foreign(rank)
    for taken, partner in np.ndindex(len(layer.home), len(layer.load)):
        own = layer.load[rank][taken] - layer.computed[rank][taken]
        if partner == rank or own <= 0:
            continue
        for slot, given in enumerate(layer.slots[rank]):
            if given in (EMPTY, taken):
                continue
            whole = layer.computed[rank][given]
            foreign = whole - layer.load[rank][given]
            part = min(foreign, own, layer.computed[partner][taken])
            for pairs in (part, whole):
                after = layer.traded(rank, slot, taken, partner, pairs) if pairs > 0 else None
                if after is not None and after.foreign(partner) < before:
                    yield before - after.foreign(rank), after
