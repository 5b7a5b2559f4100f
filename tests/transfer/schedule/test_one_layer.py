"""One layer on free links, against every division of its copies between the paths."""

from collections import Counter
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from foremoe.transfer.copies import Fill
from foremoe.transfer.schedule.links import Link, Links
from foremoe.transfer.schedule.micro_step import schedule_micro_step
from foremoe.transfer.schedule.timetable import LayerCopies
from tests.transfer.schedule.problems import HOME, check_timetable, fill_lists, links


def end_of(way: tuple[tuple[Fill, Link | None], ...], on: Links) -> int:
    """When the last copy of a division ends if every port works without a pause.

    By Kőnig's theorem copies of one size between ports can be ordered so that they do.
    """
    load: Counter[tuple[str, Link, int]] = Counter()
    for fill, link in way:
        if link is not None:
            load["in", link, fill.rank] += 1
        if link in (Link.PEER, Link.NETWORK):
            load["out", link, int(HOME[fill.expert])] += 1
    return max((n * on.chunks * on.tick_ns[port[1]] for port, n in load.items()), default=0)


def divisions(
    fills: list[Fill], on: Links, drop: bool
) -> list[tuple[tuple[Fill, Link | None], ...]]:
    options: list[list[tuple[Fill, Link | None]]] = [
        [
            *((fill, link) for link in on.options(int(HOME[fill.expert]), fill.rank)),
            *([(fill, None)] if drop else []),
        ]
        for fill in fills
    ]
    return list(product(*options))


@settings(max_examples=1000, deadline=None)
@given(fill_lists(9), links(relay=False))
def test_no_division_between_the_paths_ends_earlier(fills: list[Fill], on: Links) -> None:
    layers = [LayerCopies(3, fills, HOME)]
    timetable = schedule_micro_step(layers, on)
    check_timetable(timetable, layers, on)
    assert not timetable.dropped
    best = min(end_of(way, on) for way in divisions(fills, on, drop=False))
    assert timetable.end_ns.max(initial=0) == best


@settings(max_examples=1000, deadline=None)
@given(fill_lists(6), links(relay=False), st.integers(0, 100))
def test_no_division_drops_fewer(fills: list[Fill], on: Links, deadline: int) -> None:
    layers = [LayerCopies(3, fills, HOME, 0, deadline)]
    timetable = schedule_micro_step(layers, on)
    check_timetable(timetable, layers, on)
    in_time = [way for way in divisions(fills, on, drop=True) if end_of(way, on) <= deadline]
    fewest = min(sum(link is None for _, link in way) for way in in_time)
    assert len(timetable.dropped) == fewest
