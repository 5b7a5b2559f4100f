"""All copies of a micro-step on the links of the group: when, by which path, and which not at all.

Given the layers' copies, each with a window [ready, deadline), and links that carry one slab at a
time in chunks, the schedule looks for times and paths such that no port carries two chunks at once
and every copy lies within its window, and drops as little as it can.

Layers are served by earliest deadline, each over the ticks that more urgent ones left free. On a
single link that is optimal: when a copy finds no room, the ticks back to the last free one hold
only copies that must lie there too, so no order fits them all (Hall 1935). A later layer's copy
that started first is interrupted between two chunks; on the host link also one that an earlier call
has placed (``overtaking.py``). For one layer there are these candidates:

1. every copy, hottest ports first, takes the way on which it ends first: the node's host cache or
   its home;
2. the exact division between paths of ``share.py``, for the smallest end below that of 1, or, if 1
   drops some, for as many as possible by the deadline; those that go directly in Kőnig rounds;
3. if some are dropped still, 1 with the most valuable copies first;
4. where the links allow it, and either some are dropped still or there is no deadline, 1 and 3 with
   relays: replicas that have arrived are copied on.

The one that drops the least value, then the fewest, then ends first is taken. On free links the
second ends as early, and drops as few, as any choice of paths without relays.

When all layers are placed, what was dropped gets what is left of the links until the time up to
which it is worth waiting for (``latest_ns``). Everything is integer arithmetic on what all ranks
know, so all ranks drop the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from foremoe.planner.problem import Topology
from foremoe.transfer.copies import (
    EMPTY,
    Copy,
    Fill,
    Path,
    Relay,
    assign_slots,
    check_wanted,
    fill_columns,
)
from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import Link, Links
from foremoe.transfer.schedule.overtaking import place_overtaking, post
from foremoe.transfer.schedule.place import DROPPED, Placed
from foremoe.transfer.schedule.timetable import LayerCopies, Timetable
from foremoe.transfer.schedule.window import Window, make_windows, place_late

_PATH = {Link.HOST: Path.HOST, Link.PEER: Path.PEER, Link.NETWORK: Path.PEER}


def schedule_micro_step(
    layers: Sequence[LayerCopies], links: Links, calendar: Calendar | None = None
) -> Timetable:
    """Give every copy of ``layers`` a time and a path, or drop it.

    calendar: what copies placed earlier still take of the links (``Timetable.calendar``, ``after``
    now); it stays as it is. A layer may come more than once, as for forward and backward.

    Raises InvalidInputError when a copy has no link at all.
    """
    calendar = Calendar.empty(links) if calendar is None else calendar.copy()
    windows = make_windows(layers, calendar)
    urgency = sorted((w.deadline_ns, w.ready_ns, index) for index, w in enumerate(windows))
    placed = {index: place_overtaking(windows[index], calendar) for _, _, index in urgency}
    late = [(each.latest_ns, each.ready_ns, index) for index, each in enumerate(layers)]
    for latest_ns, _, index in sorted(late):
        if latest_ns > windows[index].deadline_ns:
            place_late(windows[index], latest_ns, placed[index], calendar)
    by_layer = [placed[index] for index in range(len(layers))]
    return _timetable(layers, windows, by_layer, calendar)


def warm_up() -> None:
    """Compile the kernels now rather than when copies wait for them."""
    empty = np.full((1, 1), EMPTY, np.int32)
    check_wanted(empty, empty[0])
    assign_slots(empty, empty)
    fills = [Fill(0, slot, slot) for slot in range(2)]
    impossible = LayerCopies(0, fills, np.ones(2, np.int32), 0, 1)
    schedule_micro_step([impossible], Links(Topology(2, 2), 8, 8, 8, relay=True))


def _timetable(
    layers: Sequence[LayerCopies],
    windows: Sequence[Window],
    by_layer: Sequence[Placed],
    calendar: Calendar,
) -> Timetable:
    none = Placed(
        np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, calendar.links.chunks), np.int64)
    )
    placed = Placed(*map(np.concatenate, zip(none, *by_layer, strict=True)))
    link = placed.link
    fills = [fill for layer in layers for fill in layer.fills]
    rank, slot, expert = fill_columns(fills)
    counts = [len(layer.fills) for layer in layers]
    of_layer = np.repeat(np.array([layer.layer for layer in layers], np.int64), counts)
    due_ns = np.repeat(np.array([layer.deadline_ns for layer in layers], np.int64), counts)
    post(rank, due_ns, placed, calendar)
    ticks = placed.columns + calendar.base[link][:, None]
    start_ns = ticks[:, 0] * calendar.tick_ns[link]
    order = np.lexsort((link, start_ns))
    order = order[link[order] != DROPPED]
    columns = of_layer, expert, placed.sender, rank, slot, link, due_ns
    in_order: list[list[Any]] = [column[order].tolist() for column in columns]
    in_order[5] = [_PATH[by] for by in in_order[5]]
    relays = _relays(windows, layers, by_layer)
    in_order.append([relays.get(index) for index in order.tolist()])
    lost = np.flatnonzero(link == DROPPED).tolist()
    dropped = tuple((int(of_layer[index]), fills[index]) for index in lost)
    return Timetable(tuple(map(Copy, *in_order)), link[order], ticks[order], dropped, calendar)


def _relays(
    windows: Sequence[Window], layers: Sequence[LayerCopies], by_layer: Sequence[Placed]
) -> dict[int, Relay]:
    """Of the copies that do not come from their home, by their index over all layers."""
    found, first = {}, 0
    for window, layer, placed in zip(windows, layers, by_layer, strict=True):
        asked = window.asked
        relayed = (placed.link != DROPPED) & (placed.sender != asked.source)
        for index in np.flatnonzero(relayed).tolist():
            there = asked.destination == placed.sender[index]
            sender = int(np.argmax(there & (asked.expert == asked.expert[index])))
            found[first + index] = Relay(layer.fills[sender].slot, int(asked.source[index]))
        first += len(layer.fills)
    return found
