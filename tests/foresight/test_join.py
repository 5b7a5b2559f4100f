"""Pieces become one sequence; what no piece covers is a gap and not a row."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import inspect
from foremoe.foresight.join import join
from foremoe.foresight.model import MoeModel
from foremoe.foresight.routing import FaultKind, Routing, Row
from tests.foresight.routes import MODEL, routes


def piece(start: int, stop: int, seed: int = 0, **options: Any) -> Routing:
    return inspect("a", routes(20, seed=seed)[start:stop], MODEL, start=start, **options)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=6))
def test_a_later_piece_replaces_from_its_start(cuts: list[int]) -> None:
    """Against plain Python: a list cut at each start and extended."""
    pieces = []
    expected: list[Any] = []
    for seed, start in enumerate(cuts):
        part = piece(start, min(start + 7, 20), seed=seed)
        pieces.append(part)
        expected = [*expected[:start], *[None] * (start - len(expected)), *part.ids.tolist()]
    whole = join(pieces)
    assert len(whole.ids) == len(expected)
    for row, ids in enumerate(expected):
        assert (whole.rows[row] == Row.MISSING) == (ids is None)
        assert ids is None or whole.ids[row].tolist() == ids
    missing = expected.count(None)
    assert [(f.kind, f.rows) for f in whole.faults] == ([(FaultKind.GAP, missing)] * bool(missing))


def test_turns_of_two_policies_are_named() -> None:
    turns = [piece(0, 6, weight_versions=("3",)), piece(6, 11, weight_versions=("3", "4"))]
    whole = join(turns)
    assert whole.weight_versions == ("3", "4")
    np.testing.assert_array_equal(whole.ids, routes(20)[:11])
    assert whole.faults == ()


def test_a_piece_without_its_beginning_is_a_gap() -> None:
    whole = join([piece(4, 9)])
    assert whole.rows.tolist() == [Row.MISSING] * 4 + [Row.PRESENT] * 5
    assert [(fault.kind, fault.rows) for fault in whole.faults] == [(FaultKind.GAP, 4)]


def test_faults_of_the_pieces_stay() -> None:
    blank = inspect("a", np.zeros((3, 3, 4), np.int32), MODEL, start=5)
    whole = join([piece(0, 5), blank, piece(8, 10)])
    assert [(f.kind, f.rows) for f in whole.faults] == [(FaultKind.ROWS_NOT_CAPTURED, 3)]
    assert whole.present == 7


def test_a_layer_lost_in_one_piece_loses_its_rows() -> None:
    ids = routes(4)
    ids[:, 1] = 0
    lost = inspect("a", ids, MODEL, start=5)
    assert lost.lost_layers == (2,)
    whole = join([piece(0, 5), lost])
    assert whole.lost_layers == ()
    assert [(f.kind, f.rows) for f in whole.faults] == [(FaultKind.ROWS_PARTLY_CAPTURED, 4)]
    assert whole.histogram().sum(axis=1).tolist() == [5 * 4] * 3
    assert join([lost, piece(0, 1), lost]).lost_layers == ()


def test_narrow_and_wide_ids_join() -> None:
    model = MoeModel(300, 4, 4, (1, 2, 3))
    narrow = inspect("a", routes(3).astype(np.uint8), model)
    wide = inspect("a", routes(3, model).astype(np.int32), model, start=3)
    assert join([narrow, wide]).ids.tolist() == [*routes(3).tolist(), *routes(3, model).tolist()]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "there is none to join"),
        ([piece(0, 3), inspect("b", routes(2), MODEL, start=3)], "sequence 'b'"),
        ([piece(0, 3), piece(3, 5).select((1, 2))], "with 2 layers"),
        ([inspect("a", routes(2), MODEL, start=2**24)], "starts at token 16777216, but .* at 0;"),
        ([piece(0, 3), inspect("a", routes(2), MODEL, start=2**21)], "before it ends at 3;"),
    ],
)
def test_pieces_that_do_not_belong_together_are_refused(
    pieces: list[Routing], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        join(pieces)
