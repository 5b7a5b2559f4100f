"""The kernels and their plain-Python twins give the same timetables, byte for byte."""

from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foremoe.transfer.schedule import rounds, window
from foremoe.transfer.schedule.links import Links
from foremoe.transfer.schedule.micro_step import schedule_micro_step
from foremoe.transfer.schedule.timetable import LayerCopies, Timetable
from tests.transfer.schedule import twins
from tests.transfer.schedule.problems import layer_lists, links


def schedule_by_twins(layers: list[LayerCopies], on: Links) -> Timetable:
    with patch.multiple(
        window,
        place=twins.place,
        share=twins.share,
        colours=twins.colours,
    ):
        return schedule_micro_step(layers, on)


@settings(max_examples=400, deadline=None)
@given(layer_lists(most=10, layers=4), links())
def test_kernels_equal_their_twins(layers: list[LayerCopies], on: Links) -> None:
    one, other = schedule_micro_step(layers, on), schedule_by_twins(layers, on)
    assert one.copies == other.copies
    assert one.dropped == other.dropped
    for name in ("link", "ticks"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name
    assert not (one.calendar.busy != other.calendar.busy).any()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_colours_equal_their_twin(pairs: list[tuple[int, int]]) -> None:
    outs, ins = np.array(pairs, np.int64).T.copy()
    np.testing.assert_array_equal(rounds.colours(outs, ins), twins.colours(outs, ins))
