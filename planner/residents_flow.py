"""How many pairs each replica serves, for one layer and each of its coming micro-steps.

With the experts that the slots hold, pairs of an expert may sit on its home or on any rank that
holds a replica of it. From the ranks above the threshold, shortest augmenting paths move pairs to
ranks below it: what cannot move is the micro-step's excess, and the ranks from which no pair can
flow to a rank below the threshold are stuck.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import part


class Horizon(NamedTuple):
    """One layer and the coming micro-steps; row k of an array is micro-step k modulo the rows."""

    weight: NDArray[np.int64]  # [W, E] pairs per expert
    threshold: NDArray[np.int64]  # [W]
    home: NDArray[np.int32]  # [E]
    node: NDArray[np.int64]  # [P]
    slot: NDArray[np.int32]  # [P, R] expert held, -1 for none
    left: NDArray[np.int64]  # [W, E] pairs at home
    served: NDArray[np.int64]  # [W, P, R] pairs of the replica
    tokens: NDArray[np.int64]  # [W, P] pairs each rank computes
    excess: NDArray[np.int64]  # [W] pairs above the threshold that cannot move; -1 before the flow
    stuck: NDArray[np.bool_]  # [W, P]


class Hops(NamedTuple):
    """Where slots' replicas have their homes, and the last step of each path of a search."""

    first: NDArray[np.int64]  # [P] first slot (rank * R + slot) with an expert of this home
    next: NDArray[np.int64]  # [P * R] the next one, -1 after the last
    origin: NDArray[np.int64]  # [P] rank the path came from, -1 at its start
    given: NDArray[np.int64]  # [P] slot on that rank the pairs leave, -1 for home
    taken: NDArray[np.int64]  # [P] slot on this rank they enter, -1 for home
    queue: NDArray[np.int64]  # [P]


@part
def begin(horizon: Horizon, row: int) -> None:
    """All pairs at home."""
    for rank in range(len(horizon.node)):
        horizon.tokens[row, rank] = 0
        for place in range(horizon.slot.shape[1]):
            horizon.served[row, rank, place] = 0
    for expert in range(len(horizon.home)):
        horizon.left[row, expert] = horizon.weight[row, expert]
        horizon.tokens[row, horizon.home[expert]] += horizon.weight[row, expert]


@part
def flow(horizon: Horizon, hops: Hops, row: int) -> None:
    """Move pairs along shortest augmenting paths until the excess is as small as it can be."""
    while True:
        end = _search(horizon, hops, row)
        if end < 0:
            excess = 0
            for rank in range(len(horizon.node)):
                excess += max(horizon.tokens[row, rank] - horizon.threshold[row], 0)
            horizon.excess[row] = excess
            return
        moved = horizon.threshold[row] - horizon.tokens[row, end]
        rank = end
        while hops.origin[rank] >= 0:
            source = hops.origin[rank]
            if hops.given[rank] < 0:
                expert = horizon.slot[rank, hops.taken[rank]]
                moved = min(moved, horizon.left[row, expert])
            else:
                moved = min(moved, horizon.served[row, source, hops.given[rank]])
            rank = source
        moved = min(moved, horizon.tokens[row, rank] - horizon.threshold[row])
        horizon.tokens[row, rank] -= moved
        horizon.tokens[row, end] += moved
        rank = end
        while hops.origin[rank] >= 0:
            source = hops.origin[rank]
            if hops.given[rank] < 0:
                horizon.left[row, horizon.slot[rank, hops.taken[rank]]] -= moved
            else:
                horizon.served[row, source, hops.given[rank]] -= moved
            if hops.taken[rank] < 0:
                horizon.left[row, horizon.slot[source, hops.given[rank]]] += moved
            else:
                horizon.served[row, rank, hops.taken[rank]] += moved
            rank = source


@part
def _search(horizon: Horizon, hops: Hops, row: int) -> int:
    """Breadth first from the ranks above the threshold to one below it, -1 if all are stuck."""
    ranks, slots = horizon.slot.shape
    stuck = horizon.stuck[row]  # the ranks seen so far
    tail = 0
    for rank in range(ranks):
        stuck[rank] = horizon.tokens[row, rank] > horizon.threshold[row]
        if stuck[rank]:
            hops.queue[tail] = rank
            hops.origin[rank] = -1
            tail += 1
    head = 0
    while head < tail:
        source = hops.queue[head]
        head += 1
        before = tail
        link = hops.first[source]
        while link >= 0:  # home experts of source move to their replicas
            rank, place = link // slots, link % slots
            if not stuck[rank] and horizon.left[row, horizon.slot[rank, place]] > 0:
                tail = _see(hops, stuck, rank, source, -1, place, tail)
            link = hops.next[link]
        for given in range(slots):  # pairs of a replica on source move to its home or its like
            expert = horizon.slot[source, given]
            if expert < 0 or horizon.served[row, source, given] == 0:
                continue
            owner = horizon.home[expert]
            if not stuck[owner]:
                tail = _see(hops, stuck, owner, source, given, -1, tail)
            link = hops.first[owner]
            while link >= 0:
                rank, place = link // slots, link % slots
                if not stuck[rank] and horizon.slot[rank, place] == expert:
                    tail = _see(hops, stuck, rank, source, given, place, tail)
                link = hops.next[link]
        for seen in range(before, tail):
            if horizon.tokens[row, hops.queue[seen]] < horizon.threshold[row]:
                return int(hops.queue[seen])
    return -1


@part
def _see(
    hops: Hops,
    stuck: NDArray[np.bool_],
    rank: int,
    source: int,
    given: int,
    taken: int,
    tail: int,
) -> int:
    """Note how the search came to a rank; the queue's new end."""
    stuck[rank] = True
    hops.origin[rank] = source
    hops.given[rank] = given
    hops.taken[rank] = taken
    hops.queue[tail] = rank
    return tail + 1


@part
def link(horizon: Horizon, hops: Hops) -> None:
    """List the slots by the home of the expert they hold, ascending."""
    ranks, slots = horizon.slot.shape
    for rank in range(ranks):
        hops.first[rank] = -1
    for link in range(ranks * slots - 1, -1, -1):
        expert = horizon.slot[link // slots, link % slots]
        if expert >= 0:
            owner = horizon.home[expert]
            hops.next[link] = hops.first[owner]
            hops.first[owner] = link
