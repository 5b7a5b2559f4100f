"""Which of a layer's copies leave the host link so that all end in time: an integral flow.

All slabs have one size, so what links carry until a time T is a number of slabs each. A copy takes
its destination's host link, or both its home's way out and its destination's way in. Of the n
copies into a rank, those that its host link cannot carry must come directly: a demand of n - host,
which may not exceed what its way in carries. The host link is thereby a lower bound on a bipartite
flow from ways out to ways in, and augmenting paths find it or show that there is none. Copies
between nodes have no host link and ports of their own, so they are demands of the same flow.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part
from foremoe.transfer.schedule.place import Asked, Board

HOST, PEER = 0, 1  # as in Link, which kernels cannot read
NONE = -1


@kernel
def share(
    order: NDArray[np.int64],
    earliest_ns: int,
    latest_ns: int,
    chunks: int,
    asked: Asked,
    board: Board,
    chosen: NDArray[np.bool_],
) -> bool:
    """Choose the copies that go directly for the earliest T in ``[earliest_ns, latest_ns]``.

    order ``[n]``: preference among copies. chunks: columns that one slab takes. When no T suffices,
    ``chosen [n]`` lets as many copies as possible end by ``latest_ns``, and the answer is False.
    """
    lists = _list_copies(order, asked, board.busy.shape[0])
    if not _fits(order, latest_ns, False, chunks, asked, board, lists, chosen):
        return False
    low, high = earliest_ns - 1, latest_ns  # nothing fits by low, all fits by high
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(order, middle, True, chunks, asked, board, lists, chosen):
            high = middle
        else:
            low = middle
    return _fits(order, high, True, chunks, asked, board, lists, chosen)


class Lists(NamedTuple):
    """The copies at each row of the calendar, in order: the first one, and each one's next."""

    first: NDArray[np.int64]
    next_in: NDArray[np.int64]
    next_out: NDArray[np.int64]


@part
def _list_copies(order: NDArray[np.int64], asked: Asked, rows: int) -> Lists:
    lists = Lists(
        np.full(rows, NONE, np.int64),
        np.full(order.size, NONE, np.int64),
        np.full(order.size, NONE, np.int64),
    )
    for i in order[::-1]:
        lists.next_in[i] = lists.first[asked.way_in[i]]
        lists.first[asked.way_in[i]] = i
        lists.next_out[i] = lists.first[asked.way_out[i]]
        lists.first[asked.way_out[i]] = i
    return lists


@part
def _fits(
    order: NDArray[np.int64],
    end_ns: int,
    all_or_none: bool,
    chunks: int,
    asked: Asked,
    board: Board,
    lists: Lists,
    chosen: NDArray[np.bool_],
) -> bool:
    """Fill ``chosen`` with a largest flow; whether it lets every copy end by ``end_ns``.

    all_or_none: give up at once when it does not.
    """
    rows = board.busy.shape[0]
    demand = np.zeros(rows, np.int64)
    left = np.full(rows, NONE, np.int64)  # slabs that each way out can still carry
    for i in order:
        chosen[i] = False
        demand[asked.way_in[i]] += 1
        out = asked.way_out[i]
        if left[out] == NONE:
            left[out] = _slabs(out, asked.direct[i], end_ns, chunks, board)
    satisfied = True
    for i in order:
        row = asked.way_in[i]
        if demand[row] == 0:
            continue  # this rank's copies are settled
        needed, demand[row] = demand[row], 0
        if asked.direct[i] == PEER:
            needed -= _slabs(asked.destination[i], HOST, end_ns, chunks, board)
        if needed <= 0:
            continue
        room = _slabs(row, asked.direct[i], end_ns, chunks, board)
        satisfied &= needed <= room
        for _ in range(min(needed, room)):
            if not _augment(row, asked, lists, left, chosen):
                satisfied = False
                break
        if all_or_none and not satisfied:
            return False
    return satisfied


@part
def _slabs(row: int, link: int, end_ns: int, chunks: int, board: Board) -> int:
    """Slabs that a port still carries within the window until ``end_ns``."""
    tick_ns = board.tick_ns[link]
    if tick_ns == 0:
        return 0
    limit = min(end_ns // tick_ns - board.base[link], board.last[link])
    taken = 0
    for column in range(board.first[link], min(limit, board.busy.shape[1])):
        taken += board.busy[row, column]  # the columns after the last one are free
    free: int = max(limit - board.first[link] - taken, 0)
    return free // chunks


@part
def _augment(
    start: int,
    asked: Asked,
    lists: Lists,
    left: NDArray[np.int64],
    chosen: NDArray[np.bool_],
) -> bool:
    """Choose one more copy into ``start``; at full ways out others make way (breadth first)."""
    taken_by = np.full(left.size, NONE, np.int64)  # the copy that would take a way out
    given_up = np.full(left.size, NONE, np.int64)  # the copy that a rank would give up
    queue = np.empty(left.size, np.int64)
    queue[0], head, tail = start, 0, 1
    while head < tail:
        i = lists.first[queue[head]]
        head += 1
        while i != NONE:
            out = asked.way_out[i]
            if not chosen[i] and taken_by[out] == NONE:
                taken_by[out] = i
                if left[out] > 0:
                    left[out] -= 1
                    _flip(start, out, taken_by, given_up, asked, chosen)
                    return True
                j = lists.first[out]
                while j != NONE:
                    into = asked.way_in[j]
                    if chosen[j] and given_up[into] == NONE and into != start:
                        given_up[into] = j
                        queue[tail] = into
                        tail += 1
                    j = lists.next_out[j]
            i = lists.next_in[i]
    return False


@part
def _flip(
    start: int,
    out: int,
    taken_by: NDArray[np.int64],
    given_up: NDArray[np.int64],
    asked: Asked,
    chosen: NDArray[np.bool_],
) -> None:
    """Along the path that ends at ``out``, choose what is taken and not what is given up."""
    while True:
        taken = taken_by[out]
        chosen[taken] = True
        row = asked.way_in[taken]
        if row == start:
            return
        chosen[given_up[row]] = False
        out = asked.way_out[given_up[row]]
