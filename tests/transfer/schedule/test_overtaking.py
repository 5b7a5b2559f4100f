"""Copies promised later but due earlier, on host links that are taken already."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import NEVER, Link, Links
from foremoe.transfer.schedule.micro_step import schedule_micro_step
from foremoe.transfer.schedule.timetable import LayerCopies
from foremoe.transfer.schedule.urgency import Urgency
from tests.transfer.schedule.problems import HOME, layer_lists, links
from tests.transfer.schedule.test_micro_step import (
    HOST_ONLY,
    ONE_NODE,
    earliest_deadline_first_fits,
    to_rank,
)


def promise_one_by_one(layers: Sequence[LayerCopies], on: Links) -> tuple[int, Calendar]:
    """How many copies are dropped, and the links afterwards."""
    dropped, calendar = 0, Calendar.empty(on)
    for layer in layers:
        timetable = schedule_micro_step([layer], on, calendar)
        dropped, calendar = dropped + len(timetable.dropped), timetable.calendar
    return dropped, calendar


windows = st.tuples(st.integers(1, 60), st.integers(1, 3))


@settings(max_examples=100, deadline=None)
@given(st.lists(windows, max_size=7), st.integers(1, 4))
def test_the_order_of_promises_drops_nothing_that_any_order_could_serve(
    drawn: list[tuple[int, int]], chunks: int
) -> None:
    on = Links(ONE_NODE, 3 * chunks, 0, 0, chunks)
    layers = [
        LayerCopies(layer, to_rank(0, *range(2, 2 + copies)), HOME, 0, deadline)
        for layer, (deadline, copies) in enumerate(drawn)
    ]
    jobs = [(0, deadline // 3, chunks * copies) for deadline, copies in drawn]
    dropped, _ = promise_one_by_one(layers, on)
    assert (dropped == 0) == earliest_deadline_first_fits(jobs)


@settings(max_examples=80, deadline=None)
@given(layer_lists(most=8, layers=5), links())
def test_nothing_that_was_accepted_becomes_late_or_meets_another(
    layers: list[LayerCopies], on: Links
) -> None:
    _, calendar = promise_one_by_one(layers, on)
    posted, tick_ns = calendar.posted, on.tick_ns[Link.HOST]
    assert ((posted.ticks[:, -1] + 1) * tick_ns <= posted.due_ns).all()
    taken = {
        (rank, tick) for rank, row in zip(posted.rank, posted.ticks, strict=True) for tick in row
    }
    assert len(taken) == posted.ticks.size
    marked = np.argwhere(calendar.busy[: ONE_NODE.ranks]).tolist()
    assert taken == {(rank, tick) for rank, tick in marked}


def test_an_urgent_copy_promised_later_overtakes_between_two_chunks() -> None:
    earlier = schedule_micro_step([LayerCopies(7, to_rank(0, 2, 3), HOME, 0, 100)], HOST_ONLY)
    urgent = [LayerCopies(0, to_rank(0, 4), HOME, 4, 12)]
    timetable = schedule_micro_step(urgent, HOST_ONLY, earlier.calendar.after(4))
    assert (timetable.start_ns.tolist(), timetable.end_ns.tolist()) == ([4], [12])
    assert timetable.calendar.posted.ticks.tolist() == [[0, 1, 6, 7], [8, 9, 10, 11], [2, 3, 4, 5]]
    assert earlier.ticks.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_links_that_serve_in_order_let_none_overtake() -> None:
    in_order = replace(HOST_ONLY, overtake=False)
    earlier = schedule_micro_step([LayerCopies(7, to_rank(0, 2, 3), HOME, 0, 100)], in_order)
    urgent = [LayerCopies(0, to_rank(0, 4), HOME, 4, 12)]
    assert schedule_micro_step(urgent, in_order, earlier.calendar).dropped


def test_copies_that_can_spare_no_time_stay_where_they_are() -> None:
    earlier = schedule_micro_step([LayerCopies(7, to_rank(0, 2, 3), HOME, 0, 20)], HOST_ONLY)
    urgent = [LayerCopies(0, to_rank(0, 4), HOME, 4, 12)]
    timetable = schedule_micro_step(urgent, HOST_ONLY, earlier.calendar)
    assert len(timetable.dropped) == 1
    assert timetable.calendar.posted.ticks.tolist() == earlier.ticks.tolist()


def test_the_most_urgent_one_that_may_go_is_first() -> None:
    queue = Urgency[str]()
    for item, due_ns in (("a", NEVER), ("b", 5), ("c", 5), ("d", 3), ("e", NEVER)):
        queue.add(item, due_ns)
    assert queue.waiting() == ["d", "b", "c", "a", "e"]
    assert queue.first(lambda item: item not in "db") == "c"
    queue.remove("d")
    assert queue.first(lambda _: True) == "b"
    assert queue.first(lambda _: False) is None
