"""One layer's copies on what more urgent layers left free of the links: the best of a few ways."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.transfer.copies import fill_columns
from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import NEVER, Link
from foremoe.transfer.schedule.place import (
    ANY,
    DROPPED,
    Asked,
    Board,
    Placed,
    mark_all,
    place,
    take_back,
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


def make_windows(layers: Sequence[LayerCopies], calendar: Calendar) -> list[Window]:
    """Raises InvalidInputError when a copy has no link at all."""
    ranks, per_node = calendar.links.topology.ranks, calendar.links.topology.ranks_per_node
    fills = [fill for layer in layers for fill in layer.fills]
    destination, _, expert = fill_columns(fills)
    source = np.empty_like(expert)
    of_layer, first = [], 0
    for layer in layers:
        its = slice(first, first := first + len(layer.fills))
        source[its] = layer.home[expert[its]]
        of_layer.append(its)
    value = [each for layer in layers for each in layer.value or [1] * len(layer.fills)]
    across = source // per_node != destination // per_node
    direct = np.where(across, np.int64(Link.NETWORK), np.int64(Link.PEER))
    exists = calendar.tick_ns > 0
    lost = ~exists[direct] & (across | ~exists[Link.HOST])
    if lost.any():
        index = int(np.argmax(lost))
        raise InvalidInputError(
            f"no path from rank {source[index]} to rank {destination[index]}: the host cache "
            "serves one node only and there is no peer group"
        )
    way_out, way_in = (2 * direct - 1) * ranks + source, 2 * direct * ranks + destination
    columns = source, destination, expert, direct, way_out, way_in
    values = np.array(value, np.int64)
    windows = []
    for layer, its in zip(layers, of_layer, strict=True):
        asked = Asked(*(column[its] for column in columns))
        windows.append(Window(asked, values[its], layer.ready_ns, layer.deadline_ns))
    return windows


def place_window(window: Window, calendar: Calendar) -> Placed:
    """Place the copies as ``schedule_micro_step`` says, and mark them in the calendar."""
    first, last = calendar.window(window.ready_ns, window.deadline_ns)
    per_node = calendar.links.topology.ranks_per_node
    board = Board(calendar.busy, calendar.base, first, last, calendar.tick_ns, per_node)
    attempts = _Attempts(window, calendar, board)
    hottest, dearest = _orders(window, calendar)
    best = attempts.first_fit(hottest, relay=False)
    if (divided := attempts.division(dearest, best[0])) is not None:
        best = min(best, divided, key=_badness)
    if best[0][1]:
        best = min(best, attempts.first_fit(dearest, relay=False), key=_badness)
    useful = best[0][1] or window.deadline_ns == NEVER
    experts = window.asked.expert
    if calendar.links.relay and useful and np.unique(experts).size < experts.size:
        for order in (hottest, dearest):
            best = min(best, attempts.first_fit(order, relay=True), key=_badness)
    mark_all(window.asked.destination, best[1], calendar.busy)
    return best[1]


def place_late(window: Window, latest_ns: int, placed: Placed, calendar: Calendar) -> None:
    """Place what ``placed`` dropped by ``latest_ns``, and mark it in the calendar."""
    lost = np.flatnonzero(placed.link == DROPPED)
    if not lost.size:
        return
    asked = Asked(*(column[lost] for column in window.asked))
    late = Window(asked, window.value[lost], window.ready_ns, latest_ns)
    for column, found in zip(placed, place_window(late, calendar), strict=True):
        column[lost] = found


def _badness(found: tuple[Badness, Placed]) -> Badness:
    return found[0]


def _orders(window: Window, calendar: Calendar) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Copies by the load of their busier port, and by value; then as given."""
    both = np.concatenate([window.asked.way_out, window.asked.way_in])
    load = np.bincount(both, minlength=calendar.busy.shape[0])
    heat = np.maximum(load[window.asked.way_out], load[window.asked.way_in])
    return np.lexsort((-heat,)), np.lexsort((-heat, -window.value))


class _Attempts:
    """Ways to place a window's copies; each leaves the calendar as it was, or longer."""

    def __init__(self, window: Window, calendar: Calendar, board: Board) -> None:
        self._window = window
        self._calendar = calendar
        self._board = board

    def first_fit(self, order: NDArray[np.int64], relay: bool) -> tuple[Badness, Placed]:
        return self._place(order, np.full(order.size, ANY), relay)

    def division(self, order: NDArray[np.int64], badness: Badness) -> tuple[Badness, Placed] | None:
        """The exact division between paths, if it can be better than ``badness``."""
        window, asked, chunks = self._window, self._window.asked, self._calendar.links.chunks
        dropped, end_ns = badness[1] > 0, badness[2]
        latest_ns = window.deadline_ns if dropped else end_ns - 1
        if order.size < 2 or latest_ns <= window.ready_ns:
            return None
        chosen = np.zeros(order.size, np.bool_)
        all_fit = share(order, window.ready_ns, latest_ns, chunks, asked, self._board, chosen)
        if not (all_fit or dropped):
            return None
        rounds = np.full(order.size, order.size, np.int64)  # those by the host link come last
        rounds[chosen] = colours(asked.way_out[chosen], asked.way_in[chosen])
        by_host = ~chosen & (asked.direct == Link.PEER)
        settled = np.where(by_host, np.int64(Link.HOST), asked.direct)
        position = np.argsort(order)
        return self._place(np.lexsort((position, rounds)), settled, relay=False)

    def _place(
        self, order: NDArray[np.int64], settled: NDArray[np.int64], relay: bool
    ) -> tuple[Badness, Placed]:
        window, calendar = self._window, self._calendar
        columns = np.zeros((order.size, calendar.links.chunks), np.int64)
        placed = Placed(np.empty_like(order), np.empty_like(order), columns)
        while not place(order, settled, relay, window.asked, self._board, placed):
            take_back(window.asked.destination, window.value, self._board, placed)
            calendar.lengthen()
            self._board = self._board._replace(busy=calendar.busy)
        return take_back(window.asked.destination, window.value, self._board, placed), placed
