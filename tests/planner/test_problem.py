"""Bad input is refused with one line that says where and what."""

import numpy as np
import pytest

from foremoe.errors import InvalidInputError
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.policies import foremoe
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.split import split_by_source


def problem(
    load: np.ndarray[tuple[int, ...], np.dtype[np.int64]], target: float | None = None
) -> StageProblem:
    _, layers, ranks, experts = load.shape
    return StageProblem(
        load,
        contiguous_homes(layers, experts, ranks),
        np.zeros(len(load), np.int32),
        Topology(ranks, ranks),
        1,
        target,
    )


def test_contiguous_homes_shard_experts_in_order() -> None:
    assert contiguous_homes(2, 6, 3).tolist() == [[0, 0, 1, 1, 2, 2]] * 2


@pytest.mark.parametrize(("experts", "ranks"), [(7, 2), (0, 2), (2, 4), (4, 0)])
def test_homes_that_cannot_be_even_are_refused(experts: int, ranks: int) -> None:
    with pytest.raises(InvalidInputError, match=r"share|ranks"):
        contiguous_homes(1, experts, ranks)


def test_negative_loads_are_refused() -> None:
    load = np.zeros((1, 1, 2, 4), np.int64)
    load[0, 0, 1, 2] = -1
    with pytest.raises(InvalidInputError, match="negative"):
        problem(load)


@pytest.mark.parametrize("count", [2**53, 2**62, np.iinfo(np.int64).max])
def test_overflowing_loads_are_refused(count: int) -> None:
    load = np.zeros((2, 3, 2, 4), np.int64)
    load[1, 2] = count
    with pytest.raises(InvalidInputError, match="micro-step 1, layer row 2"):
        problem(load)


def test_read_only_and_strided_arrays_are_planned_like_any_other() -> None:
    plain = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 8))
    frozen = np.frombuffer(plain.tobytes(), np.int64).reshape(plain.shape)
    strided = np.asfortranarray(plain)
    expected = [plan.replica_tokens for plan in foremoe(problem(plain))]
    for other in (frozen, strided):
        before = len(split_by_source.signatures)  # type: ignore[attr-defined]
        got = [plan.replica_tokens for plan in foremoe(problem(other))]
        np.testing.assert_array_equal(got, expected)
        assert len(split_by_source.signatures) == before, "compiled anew"  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(0, 1, 2, 4), (1, 0, 2, 4)])
def test_a_stage_without_micro_steps_or_layers_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="at least one micro-step and layer"):
        problem(np.zeros(shape, np.int64))


@pytest.mark.parametrize("target", [0.99, -1.0, float("nan"), float("inf")])
def test_a_target_that_is_no_imbalance_is_refused(target: float) -> None:
    with pytest.raises(InvalidInputError, match="target"):
        problem(np.zeros((1, 1, 2, 4), np.int64), target)
