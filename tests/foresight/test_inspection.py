"""Rows are told apart, faults are found, and nothing that was not captured counts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import RAW_DTYPES, inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.routing import Fault, FaultKind, Row
from tests.foresight.routes import MODEL, all_layers, models, routes


def kinds(faults: tuple[Fault, ...]) -> list[tuple[FaultKind, int | None, int]]:
    return [(fault.kind, fault.layer, fault.rows) for fault in faults]


@pytest.mark.parametrize("dtype", RAW_DTYPES)
@pytest.mark.parametrize("layer_axis", ["all", "routing"])
def test_both_layer_axes_give_global_layer_ids(dtype: np.dtype[Any], layer_axis: str) -> None:
    ids = routes(9).astype(dtype)
    routing = inspect("a", all_layers(ids) if layer_axis == "all" else ids, MODEL)
    assert routing.layers == (1, 2, 3)
    assert routing.faults == ()
    np.testing.assert_array_equal(routing.ids, ids)
    for layer, counts in enumerate(routing.histogram()):
        np.testing.assert_array_equal(counts, np.bincount(ids[:, layer].ravel(), minlength=16))


def test_a_layer_of_zeros_is_a_fault_and_not_a_hot_expert() -> None:
    ids = routes(9)
    ids[:, 1] = 0
    routing = inspect("a", ids, MODEL)
    assert kinds(routing.faults) == [(FaultKind.LAYER_NOT_CAPTURED, 2, 9)]
    assert routing.present == 9
    with pytest.raises(InvalidInputError, match=r"sequence 'a', layer 2: layer not captured"):
        routing.histogram()
    rest = routing.select((1, 3))
    assert rest.layers == (1, 3)
    np.testing.assert_array_equal(rest.histogram(), inspect("a", routes(9), MODEL).histogram()[::2])


def test_nothing_captured_is_one_fault() -> None:
    routing = inspect("a", np.zeros((9, 3, 4), np.uint8), MODEL)
    assert kinds(routing.faults) == [(FaultKind.NOTHING_CAPTURED, None, 9)]
    assert routing.present == 0
    with pytest.raises(InvalidInputError, match="nothing captured"):
        routing.histogram()


def test_rows_of_one_expert_are_missing() -> None:
    ids = routes(9)
    ids[2:4] = 0
    ids[6] = 5  # a constant other than zero is no choice either
    ids[8, 2] = 0
    routing = inspect("a", ids, MODEL)
    assert routing.rows.tolist() == [0, 0, 2, 2, 0, 0, 2, 0, 2]
    assert kinds(routing.faults) == [
        (FaultKind.ROWS_NOT_CAPTURED, None, 3),
        (FaultKind.ROWS_PARTLY_CAPTURED, None, 1),
    ]
    assert routing.histogram().sum(axis=1).tolist() == [5 * 4] * 3


def test_negative_rows_are_missing_and_no_fault_unless_in_part() -> None:
    ids = routes(6).astype(np.int16)
    ids[1] = -1
    routing = inspect("a", ids, MODEL)
    assert routing.rows.tolist() == [0, Row.MISSING, 0, 0, 0, 0]
    assert routing.faults == ()
    ids[3, 0] = -1
    assert kinds(inspect("a", ids, MODEL).faults) == [(FaultKind.ROWS_PARTLY_CAPTURED, None, 1)]


def test_rows_the_carrier_calls_padding_may_hold_anything() -> None:
    ids = routes(5)
    ids[0], ids[4] = 99, 0
    rows = np.array([Row.PADDING, 0, 0, 0, Row.PADDING], np.uint8)
    routing = inspect("a", ids, MODEL, rows=rows)
    assert routing.faults == ()
    np.testing.assert_array_equal(routing.rows, rows)
    np.testing.assert_array_equal(routing.present_ids(), ids[1:4])
    assert routing.histogram().sum() == 3 * 3 * 4


def test_a_lost_layer_does_not_make_all_rows_partly_captured() -> None:
    ids = routes(9)
    ids[:, 0] = 0
    ids[4] = 0
    routing = inspect("a", ids, MODEL)
    assert kinds(routing.faults) == [
        (FaultKind.LAYER_NOT_CAPTURED, 1, 9),
        (FaultKind.ROWS_NOT_CAPTURED, None, 1),
    ]
    assert routing.present == 8


def test_with_top_1_zero_is_a_choice_until_a_layer_has_no_other() -> None:
    model = MoeModel(16, 1, 2, (0, 1))
    ids = np.zeros((40, 2, 1), np.uint8)
    ids[:, 1, 0] = np.arange(40) % 16
    assert kinds(inspect("a", ids, model).faults) == [(FaultKind.LAYER_NOT_CAPTURED, 0, 40)]
    short = inspect("a", ids[:8], model)
    assert short.faults == ()
    assert short.present == 8


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.zeros((5, 3), np.uint8), {}, r"sequence 'a': routed_experts: expected integers"),
        (np.zeros((5, 3, 4)), {}, "float64"),
        (np.zeros((5, 3, 4), np.int64), {}, "int64"),
        (np.zeros((5, 3, 2), np.uint8), {}, "2 experts per token, but the model's top_k is 4"),
        (np.zeros((5, 2, 4), np.uint8), {}, "2 entries, but the model has 4 decoder layers, 3 of"),
        (routes(5), {"start": -1}, "start must lie in"),
        (routes(5), {"rows": np.zeros(4, np.uint8)}, r"5 rows, its mask \[4\]"),
        (routes(5) + 15, {}, r"row 0, layer 1 has expert \d+, but the model has 16 experts"),
    ],
)
def test_bad_ids_are_refused_with_field_and_layer(
    ids: NDArray[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        inspect("a", ids, MODEL, **options)
    assert str(error.value).startswith("sequence 'a': routed_experts: ")


def test_a_layer_that_is_not_there_cannot_be_selected() -> None:
    with pytest.raises(InvalidInputError, match=r"sequence 'a': has no layer 0, only 1, 2, 3"):
        inspect("a", routes(2), MODEL).select((0, 1))


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(0, 12), st.data())
def test_any_mixture_of_rows_equals_the_simple_count(
    model: MoeModel, tokens: int, data: st.DataObject
) -> None:
    """Against plain Python: what counts is what is PRESENT, expert by expert."""
    ids = routes(tokens, model, seed=tokens)
    fates = data.draw(st.lists(st.sampled_from("cczmp"), min_size=tokens, max_size=tokens))
    rows = np.array([Row.PADDING if fate == "p" else 0 for fate in fates], np.uint8)
    for row, fate in enumerate(fates):
        ids[row] = {"z": 0, "m": -1}.get(fate, ids[row])
    routing = inspect("a", ids, model, rows=rows)
    present = [row for row, fate in enumerate(fates) if fate == "c"]
    assert np.flatnonzero(routing.rows == Row.PRESENT).tolist() == present
    assert np.flatnonzero(routing.rows == Row.PADDING).tolist() == np.flatnonzero(rows).tolist()
    zeros = fates.count("z")
    expected = FaultKind.ROWS_NOT_CAPTURED if present else FaultKind.NOTHING_CAPTURED
    assert kinds(routing.faults) == ([(expected, None, zeros)] if zeros else [])
    if present or not zeros:
        counts = [[0] * model.num_experts for _ in model.layers]
        for row in present:
            for layer, chosen in enumerate(ids[row].tolist()):
                for expert in chosen:
                    counts[layer][expert] += 1
        assert routing.histogram().tolist() == counts
