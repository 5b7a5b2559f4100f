"""One layer's copies on what more urgent layers left free of the links: the best of a few ways."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import NEVER, Link, Links
from foremoe.transfer.schedule.place import (
    ANY,
    DROPPED,
    Asked,
    Board,
    Placed,
    mark_all,
    place,
)
from foremoe.transfer.schedule.rounds import colours
from foremoe.transfer.schedule.share import share
from foremoe.transfer.schedule.timetable import LayerCopies

Badness = tuple[int, int, int]  # value dropped, copies dropped, end in ns


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A layer's copies; value: int64 ``[n]``."""

    asked: Asked
    value: NDArray[np.int64]
    ready_ns: int
    deadline_ns: int


def make_window(layer: LayerCopies, links: Links) -> Window:
    """Raises InvalidInputError when a copy has no link at all."""
    ranks, per_node = links.topology.ranks, links.topology.ranks_per_node
    expert = np.array([fill.expert for fill in layer.fills], np.int64)
    destination = np.array([fill.rank for fill in layer.fills], np.int64)
    source = layer.home[expert].astype(np.int64)
    value = np.array(layer.value or [1] * expert.size, np.int64)
    across = source // per_node != destination // per_node
    direct = np.where(across, np.int64(Link.NETWORK), np.int64(Link.PEER))
    tick_ns = np.array(links.tick_ns, np.int64)
    lost = (tick_ns[direct] == 0) & (across | (tick_ns[Link.HOST] == 0))
    if lost.any():
        index = int(np.argmax(lost))
        raise InvalidInputError(
            f"no path from rank {source[index]} to rank {destination[index]}: the host cache "
            "serves one node only and there is no peer group"
        )
    way_out, way_in = (2 * direct - 1) * ranks + source, 2 * direct * ranks + destination
    asked = Asked(source, destination, expert, direct, way_out, way_in)
    return Window(asked, value, layer.ready_ns, layer.deadline_ns)


def place_window(window: Window, calendar: Calendar) -> Placed:
    """Place the copies as ``schedule_micro_step`` says, and mark them in the calendar."""
    hottest, dearest = _orders(window, calendar)
    best = _try(window, calendar, hottest)
    if (divided := _divide(window, calendar, dearest, best[0])) is not None:
        best = min(best, divided, key=_badness)
    for order, relay in ((dearest, False), (hottest, True), (dearest, True)):
        useful = best[0][1] or (relay and window.deadline_ns == NEVER)
        if useful and relay <= calendar.links.relay:
            best = min(best, _try(window, calendar, order, relay=relay), key=_badness)
    mark_all(window.asked.destination, best[1], calendar.busy, 1)
    return best[1]


def _badness(found: tuple[Badness, Placed]) -> Badness:
    return found[0]


def _orders(window: Window, calendar: Calendar) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Copies by the load of their busier port, and by value; then as given."""
    load = np.zeros(calendar.busy.shape[0], np.int64)
    np.add.at(load, window.asked.way_out, 1)
    np.add.at(load, window.asked.way_in, 1)
    heat = np.maximum(load[window.asked.way_out], load[window.asked.way_in])
    return np.lexsort((-heat,)), np.lexsort((-heat, -window.value))


def _board(window: Window, calendar: Calendar) -> Board:
    links = calendar.links
    first, last = calendar.window(window.ready_ns, window.deadline_ns)
    tick_ns = np.array(links.tick_ns, np.int64)
    per_node = links.topology.ranks_per_node
    return Board(calendar.busy, calendar.base, first, last, tick_ns, per_node)


def _try(
    window: Window,
    calendar: Calendar,
    order: NDArray[np.int64],
    settled: NDArray[np.int64] | None = None,
    relay: bool = False,
) -> tuple[Badness, Placed]:
    """Place the copies in this order and take them back."""
    settled = np.full_like(order, ANY) if settled is None else settled
    columns = np.zeros((order.size, calendar.links.chunks), np.int64)
    placed = Placed(np.empty_like(order), np.empty_like(order), columns)
    while True:
        board = _board(window, calendar)
        done = place(order, settled, relay, window.asked, board, placed)
        mark_all(window.asked.destination, placed, calendar.busy, 0)
        if done:
            break
        calendar.lengthen()
    lost = placed.link == DROPPED
    ends = (board.base[placed.link] + columns[:, -1] + 1) * board.tick_ns[placed.link]
    end_ns = int(ends[~lost].max(initial=0))
    return (int(window.value[lost].sum()), int(np.count_nonzero(lost)), end_ns), placed


def _divide(
    window: Window, calendar: Calendar, order: NDArray[np.int64], badness: Badness
) -> tuple[Badness, Placed] | None:
    """The exact division between paths, if it can be better than ``badness``."""
    dropped, end_ns = badness[1] > 0, badness[2]
    latest_ns = window.deadline_ns if dropped else end_ns - 1
    if not order.size or latest_ns <= window.ready_ns:
        return None
    asked, chunks = window.asked, calendar.links.chunks
    chosen = np.zeros(order.size, np.bool_)
    board = _board(window, calendar)
    all_fit = share(order, window.ready_ns, latest_ns, chunks, asked, board, chosen)
    if not (all_fit or dropped):
        return None
    rounds = np.full(order.size, order.size, np.int64)  # those by the host link come last
    rounds[chosen] = colours(asked.way_out[chosen], asked.way_in[chosen])
    by_host = ~chosen & (asked.direct == Link.PEER)
    settled = np.where(by_host, np.int64(Link.HOST), asked.direct)
    position = np.argsort(order)
    return _try(window, calendar, np.lexsort((position, rounds)), settled)
