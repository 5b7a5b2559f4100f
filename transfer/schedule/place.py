"""First fit: each copy of a layer takes the way on which it ends first, after those placed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part

HOST, PEER, NETWORK = 0, 1, 2  # as in Link, which kernels cannot read
ANY = -1  # a copy whose link is not settled beforehand
DROPPED = -1
_LATEST = 2**62

# The fields of these are compiled into share.py too, whose cache does not notice a change here.


class Asked(NamedTuple):
    """A layer's copies, int64 ``[n]``.

    direct: the link from an expert's home to its destination, if the copy goes directly. way_out,
    way_in: the rows of the calendar that it takes then.
    """

    source: NDArray[np.int64]
    destination: NDArray[np.int64]
    expert: NDArray[np.int64]
    direct: NDArray[np.int64]
    way_out: NDArray[np.int64]
    way_in: NDArray[np.int64]


class Board(NamedTuple):
    """The layer's window ``[first, last)`` on the calendar, by link in columns of ``busy``.

    busy: uint8 ``[5 P, H]``. base: int64 ``[3]``, the tick of column 0. tick_ns: int64 ``[3]``, 0
    where there is no such link.
    """

    busy: NDArray[np.uint8]
    base: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    tick_ns: NDArray[np.int64]
    ranks_per_node: int


class Placed(NamedTuple):
    """Where copies lie, int64: link and sender ``[n]`` (DROPPED: nowhere), columns ``[n, C]``."""

    link: NDArray[np.int64]
    sender: NDArray[np.int64]
    columns: NDArray[np.int64]


@kernel
def place(
    order: NDArray[np.int64],
    settled: NDArray[np.int64],
    relay: bool,
    asked: Asked,
    board: Board,
    placed: Placed,
) -> bool:
    """Place the copies in ``order``: fill ``placed`` and mark the columns busy.

    settled ``[n]``: the link a copy takes from its home, ANY for the link and sender by which it
    ends first; also where it has no room on the settled one. Returns False when the calendar is
    too short to tell.
    """
    found = np.zeros(placed.columns.shape[1], np.int64)
    long_enough = True
    for position, i in enumerate(order):
        placed.link[i], placed.sender[i] = DROPPED, DROPPED
        earlier = order[:0]
        if settled[i] != ANY:
            long_enough &= _place_one(i, settled[i], earlier, asked, board, placed, found)
        if placed.link[i] == DROPPED:
            if relay:
                earlier = order[:position]
            long_enough &= _place_one(i, ANY, earlier, asked, board, placed, found)
        _mark(i, asked.destination[i], placed, board.busy, 1)
    return long_enough


@kernel
def mark_all(destination: NDArray[np.int64], placed: Placed, busy: NDArray[np.uint8]) -> None:
    """Take the columns of all placed copies again."""
    for i in range(destination.size):
        _mark(i, destination[i], placed, busy, 1)


@kernel
def take_back(
    destination: NDArray[np.int64], value: NDArray[np.int64], board: Board, placed: Placed
) -> tuple[int, int, int]:
    """Free their columns; returns the value dropped, the copies dropped, and when the rest ends."""
    worth, copies, end_ns = 0, 0, 0
    for i in range(destination.size):
        _mark(i, destination[i], placed, board.busy, 0)
        if placed.link[i] == DROPPED:
            worth += value[i]
            copies += 1
        else:
            end_ns = max(end_ns, _end_ns(placed.columns[i, -1], placed.link[i], board))
    return worth, copies, end_ns


@part
def _place_one(
    i: int,
    only: int,
    earlier: NDArray[np.int64],
    asked: Asked,
    board: Board,
    placed: Placed,
    found: NDArray[np.int64],
) -> bool:
    """Find copy i its way: the host cache, its home, or the ``earlier`` copies of its expert.

    Of those only what came from a rank is sent on, so that a rank's sends wait for its receives
    alone.
    """
    destination = asked.destination[i]
    node = destination // board.ranks_per_node
    soonest = _LATEST
    long_enough = True
    for way in range(-2, earlier.size):
        by, origin, since = asked.direct[i], asked.source[i], 0
        if way == -2:
            if by == NETWORK:
                continue
            by = HOST
        elif way >= 0:
            j = earlier[way]
            if asked.expert[j] != asked.expert[i] or placed.link[j] in (DROPPED, HOST):
                continue
            origin = asked.destination[j]
            by = PEER if origin // board.ranks_per_node == node else NETWORK
            since = _end_ns(placed.columns[j, -1], placed.link[j], board)
        tick_ns = board.tick_ns[by]
        if tick_ns == 0 or (only != ANY and only != by):
            continue
        start = max(board.first[by], -(-since // tick_ns) - board.base[by])
        limit = min(board.last[by], board.busy.shape[1])
        one, other = _rows(by, origin, destination, board.busy)
        if _find(board.busy[one], board.busy[other], start, limit, found):
            end = _end_ns(found[-1], by, board)
            if end < soonest:
                soonest = end
                placed.link[i], placed.sender[i] = by, origin
                placed.columns[i] = found
        elif limit < board.last[by]:
            long_enough = False
    return long_enough


@part
def _find(
    one: NDArray[np.uint8],
    other: NDArray[np.uint8],
    start: int,
    limit: int,
    found: NDArray[np.int64],
) -> bool:
    """The first columns from ``start`` on, below ``limit``, in which both ports are free."""
    count = 0
    for column in range(start, limit):
        if one[column] == 0 and other[column] == 0:
            found[count] = column
            count += 1
            if count == found.size:
                return True
    return False


@part
def _end_ns(column: int, link: int, board: Board) -> int:
    end: int = (board.base[link] + column + 1) * board.tick_ns[link]
    return end


@part
def _mark(i: int, destination: int, placed: Placed, busy: NDArray[np.uint8], mark: int) -> None:
    if placed.link[i] != DROPPED:
        one, other = _rows(placed.link[i], placed.sender[i], destination, busy)
        for column in placed.columns[i]:
            busy[one, column] = mark
            busy[other, column] = mark


@part
def _rows(link: int, origin: int, destination: int, busy: NDArray[np.uint8]) -> tuple[int, int]:
    """Rows of the calendar: host in, peer out, peer in, network out, network in."""
    ranks = busy.shape[0] // 5
    if link == HOST:
        return destination, destination
    return (2 * link - 1) * ranks + origin, 2 * link * ranks + destination
