from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.transfer.copies import EMPTY, Fill, assign_slots, check_wanted

SLOTS = 3


def _rows(draw: st.DrawFn, ranks: int) -> NDArray[np.int32]:
    """Each rank: distinct experts of 6, or empty."""
    row = st.lists(st.integers(0, 5), max_size=SLOTS, unique=True)
    drawn = [draw(row) for _ in range(ranks)]
    padded = [draw(st.permutations(r + [EMPTY] * (SLOTS - len(r)))) for r in drawn]
    return np.array(padded, np.int32)


@st.composite
def wanted_and_content(draw: st.DrawFn) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    ranks = draw(st.integers(1, 3))
    return _rows(draw, ranks), _rows(draw, ranks)


@given(wanted_and_content())
def test_all_wanted_are_held_and_only_fills_change_slots(
    drawn: tuple[NDArray[np.int32], NDArray[np.int32]],
) -> None:
    wanted, content = drawn
    before = content.copy()
    after, fills = assign_slots(wanted, content)
    assert np.array_equal(content, before)
    replayed = content.copy()
    for fill in fills:
        replayed[fill.rank, fill.slot] = fill.expert
    assert np.array_equal(replayed, after)
    assert len({(f.rank, f.slot) for f in fills}) == len(fills)
    for rank in range(wanted.shape[0]):
        assert set(wanted[rank].tolist()) - {EMPTY} <= set(after[rank].tolist())
        held = [e for e in after[rank].tolist() if e != EMPTY]
        assert len(held) == len(set(held)), "an expert in two slots"


@given(wanted_and_content())
def test_no_assignment_needs_fewer_copies(
    drawn: tuple[NDArray[np.int32], NDArray[np.int32]],
) -> None:
    wanted, content = drawn
    _, fills = assign_slots(wanted, content)
    for rank in range(wanted.shape[0]):
        fewest = min(
            sum(e not in (EMPTY, held) for e, held in zip(order, content[rank], strict=True))
            for order in permutations(wanted[rank].tolist())
        )
        assert sum(fill.rank == rank for fill in fills) == fewest


@given(wanted_and_content())
def test_wanting_the_same_again_copies_nothing(
    drawn: tuple[NDArray[np.int32], NDArray[np.int32]],
) -> None:
    wanted, content = drawn
    after, _ = assign_slots(wanted, content)
    again, fills = assign_slots(wanted, after)
    assert fills == []
    assert np.array_equal(again, after)


def test_named_slot_is_taken_when_free_and_residents_stay() -> None:
    wanted = np.array([[4, 7, EMPTY]], np.int32)
    content = np.array([[7, 2, EMPTY]], np.int32)
    after, fills = assign_slots(wanted, content)
    assert fills == [Fill(0, 2, 4)]
    assert after.tolist() == [[7, 2, 4]]
    after, fills = assign_slots(np.array([[1, 3, 7]], np.int32), content)
    assert fills == [Fill(0, 1, 3), Fill(0, 2, 1)]
    assert after.tolist() == [[7, 3, 1]]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([[4, -1], [-1, -1]], r"\[0, 4\)"),
        ([[-2, -1], [-1, -1]], r"\[0, 4\)"),
        ([[2, 2], [-1, -1]], "rank 0 is to hold an expert twice"),
        ([[-1, -1], [-1, 3]], "rank 1 is the home of expert 3"),
    ],
)
def test_impossible_replicas_are_refused(wanted: list[list[int]], message: str) -> None:
    home = np.array([0, 0, 1, 1], np.int32)
    with pytest.raises(InvalidInputError, match=message):
        check_wanted(np.array(wanted, np.int32), home)
