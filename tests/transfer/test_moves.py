"""Home moves as pure functions: every map is reached, and each rank stays even on the way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foremoe.errors import ExhaustedError, InvalidInputError
from foremoe.planner.homes import contiguous_homes
from foremoe.transfer.moves import Move, plan_moves, staged_batches

Homes = NDArray[np.int32]


@st.composite
def home_maps(draw: st.DrawFn) -> tuple[Homes, Homes, int]:
    """Two maps of 1 to 3 layers over 1 to 5 ranks."""
    ranks, each, layers = (draw(st.integers(1, top)) for top in (5, 4, 3))
    row = contiguous_homes(1, ranks * each, ranks)[0]
    maps = [
        np.array([draw(st.permutations(row.tolist())) for _ in range(layers)], np.int32)
        for _ in range(2)
    ]
    return maps[0], maps[1], ranks


@settings(deadline=None)
@given(home_maps())
def test_every_round_is_fair_and_the_last_one_reaches_the_goal(
    maps: tuple[Homes, Homes, int],
) -> None:
    old, new, ranks = maps
    home = old.copy()
    dealt = plan_moves(old, new, ranks)
    for moves_ in dealt:
        assert len({move.row for move in moves_}) == 1
        givers = [move.source for move in moves_]
        takers = [move.destination for move in moves_]
        assert len(set(givers)) == len(givers)
        assert sorted(givers) == sorted(takers)
        for move in moves_:
            assert move.source != move.destination
            assert home[move.row, move.expert] == move.source
            home[move.row, move.expert] = move.destination
    assert np.array_equal(home, new)
    assert sum(map(len, dealt)) == np.count_nonzero(old != new)
    busiest = [
        max(np.bincount(old[row][old[row] != new[row]], minlength=1)) for row in range(len(old))
    ]
    assert len(dealt) == sum(busiest)


@settings(deadline=None)
@given(home_maps(), st.integers(10, 40))
def test_batches_keep_the_order_and_fit_everywhere(
    maps: tuple[Homes, Homes, int], limit: int
) -> None:
    old, new, ranks = maps
    dealt = plan_moves(old, new, ranks)
    expert_bytes = [10, 7, 4][: len(old)]
    batches = staged_batches(dealt, expert_bytes, ranks, limit)
    assert [moves_ for batch in batches for moves_ in batch] == dealt
    for index, batch in enumerate(batches):
        assert batch
        assert _most_held(batch, expert_bytes, ranks) <= limit
        if index:  # not one batch more than the order asks for
            assert _most_held([*batches[index - 1], batch[0]], expert_bytes, ranks) > limit


def _most_held(batch: list[list[Move]], expert_bytes: list[int], ranks: int) -> int:
    held = [0] * ranks
    for move in (move for moves_ in batch for move in moves_):
        held[move.destination] += expert_bytes[move.row]
    return max(held)


def test_an_expert_above_the_limit_is_refused() -> None:
    dealt = plan_moves(np.array([[0, 1]], np.int32), np.array([[1, 0]], np.int32), 2)
    with pytest.raises(ExhaustedError, match=r"has 11 bytes but staging may take 10"):
        staged_batches(dealt, [11], 2, 10)


def test_maps_that_do_not_fit_are_refused() -> None:
    old = contiguous_homes(2, 4, 2)
    for new in (old[:1], old.astype(np.int64), np.zeros_like(old), old + 1):
        with pytest.raises(InvalidInputError, match="home:"):
            plan_moves(old, new, 2)


def test_a_circle_of_three_and_an_exchange() -> None:
    old = np.array([[0, 0, 1, 1, 2, 2]], np.int32)
    new = np.array([[1, 2, 2, 1, 0, 0]], np.int32)
    assert plan_moves(old, new, 3) == [
        [Move(0, 0, 0, 1), Move(0, 2, 1, 2), Move(0, 4, 2, 0)],
        [Move(0, 1, 0, 2), Move(0, 5, 2, 0)],
    ]
