"""Ids become exact counts, and a bad id is named."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.histogram import expert_histogram

NUM_EXPERTS = 12


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32]),
        st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 3)),
        elements=st.integers(0, NUM_EXPERTS - 1),
    )
)
def test_counts_equal_bincount(ids: NDArray[Any]) -> None:
    histogram = expert_histogram(ids, NUM_EXPERTS)
    assert histogram.dtype == np.uint32
    assert histogram.shape == (ids.shape[1], NUM_EXPERTS)
    for layer in range(ids.shape[1]):
        expected = np.bincount(ids[:, layer].ravel(), minlength=NUM_EXPERTS)
        np.testing.assert_array_equal(histogram[layer], expected)


def test_a_strided_view_counts_the_same() -> None:
    ids = np.random.default_rng(0).integers(0, NUM_EXPERTS, (20, 6, 4)).astype(np.uint8)
    view = ids[::2, ::3]
    np.testing.assert_array_equal(
        expert_histogram(view, NUM_EXPERTS), expert_histogram(view.copy(), NUM_EXPERTS)
    )


@pytest.mark.parametrize(("dtype", "bad"), [(np.uint8, 12), (np.uint16, 60000), (np.int32, -1)])
def test_an_id_out_of_range_is_named(dtype: type[Any], bad: int) -> None:
    ids = np.zeros((5, 3, 2), dtype)
    ids[4, 1, 1] = bad
    with pytest.raises(
        InvalidInputError, match=rf"token 4, layer row 1 has expert {bad}, .* 12 experts"
    ):
        expert_histogram(ids, NUM_EXPERTS)


@pytest.mark.parametrize("ids", [np.zeros((5, 3), np.uint8), np.zeros((5, 3, 2), np.float32)])
def test_other_shapes_and_types_are_refused(ids: NDArray[Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"expected uint8, uint16 or int32 \[tokens"):
        expert_histogram(ids, NUM_EXPERTS)
