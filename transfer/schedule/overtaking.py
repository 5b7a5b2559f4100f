"""Copies by the host link that were promised before give way to a more urgent layer.

Only there: one reader serves a rank's host link and may turn to another slab between two chunks
(``urgency.py``). A peer link has two ends, which would have to agree how far they have come.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.transfer.schedule.calendar import Calendar, HostCopies
from foremoe.transfer.schedule.links import Link
from foremoe.transfer.schedule.place import HOST, Placed
from foremoe.transfer.schedule.window import Window, place_window


def place_overtaking(window: Window, calendar: Calendar) -> Placed:
    """As ``place_window``, on the ticks, too, that less urgent copies of the host link can spare.

    Those are put off to the first free ticks after it. Where one would then miss its deadline, or
    end later than it did although it was late already, all stay where they are.
    """
    moving = np.flatnonzero(calendar.posted.due_ns > window.deadline_ns)
    if not moving.size:
        return place_window(window, calendar)
    undisturbed = calendar.copy()
    first, _ = calendar.window(window.ready_ns, window.deadline_ns)
    since = int(calendar.base[Link.HOST] + first[Link.HOST])
    _lift(moving, since, calendar)
    placed = place_window(window, calendar)
    if _put_off(moving, since, calendar):
        return placed
    calendar.busy, calendar.posted = undisturbed.busy, undisturbed.posted
    return place_window(window, calendar)


def post(
    destination: NDArray[np.int64], due_ns: NDArray[np.int64], placed: Placed, calendar: Calendar
) -> None:
    """Remember the copies that take the host link, if later ones may put them off.

    destination, due_ns: ``[n]``, as ``placed``.
    """
    if not calendar.links.overtake:
        return
    by_host = placed.link == HOST
    ticks = placed.columns[by_host] + calendar.base[Link.HOST]
    added = HostCopies(destination[by_host], due_ns[by_host], ticks)
    both = zip(calendar.posted, added, strict=True)
    calendar.posted = HostCopies(*(np.concatenate(columns) for columns in both))


def _lift(moving: NDArray[np.int64], since: int, calendar: Calendar) -> None:
    """Free the ticks from ``since`` on."""
    posted, base = calendar.posted, int(calendar.base[Link.HOST])
    for index in moving.tolist():
        ticks = posted.ticks[index]
        calendar.busy[posted.rank[index], ticks[ticks >= since] - base] = 0


def _put_off(moving: NDArray[np.int64], since: int, calendar: Calendar) -> bool:
    """Give the moving copies the first ticks that are free, by deadline; False if one is late."""
    posted, tick_ns = calendar.posted, int(calendar.tick_ns[Link.HOST])
    calendar.posted = posted._replace(ticks=posted.ticks.copy())
    base = int(calendar.base[Link.HOST])
    for index in moving[np.argsort(posted.due_ns[moving], kind="stable")].tolist():
        ticks, rank = calendar.posted.ticks[index], int(posted.rank[index])
        ahead = ticks >= since
        wanted = int(np.count_nonzero(ahead))
        while (free := np.flatnonzero(calendar.busy[rank, since - base :] == 0)).size < wanted:
            calendar.lengthen()
        latest_ns = max(int(posted.due_ns[index]), (int(ticks[-1]) + 1) * tick_ns)
        ticks[ahead] = since + free[:wanted]
        calendar.busy[rank, ticks[ahead] - base] = 1
        if (int(ticks[-1]) + 1) * tick_ns > latest_ns:
            return False
    return True
