"""Rule 5: the kernels and the plain-Python twin give the same plans, byte for byte."""

import numpy as np
import pytest
from hypothesis import given, settings

from foremoe.planner.micro_step_reference import plan_stage
from foremoe.planner.plan import Plan
from foremoe.planner.policies import foremoe
from foremoe.planner.problem import StageProblem, Topology
from tests.planner.problems import problems, skewed_problem


def assert_same(plans: list[Plan], others: list[Plan]) -> None:
    assert len(plans) == len(others)
    for plan, other in zip(plans, others, strict=True):
        for name in Plan.__dataclass_fields__:
            one, two = getattr(plan, name), getattr(other, name)
            assert one.dtype == two.dtype, name
            np.testing.assert_array_equal(one, two, err_msg=name)
            assert one.tobytes() == two.tobytes(), name


@settings(max_examples=200, deadline=None)
@given(problems())
def test_kernels_equal_the_reference(problem: StageProblem) -> None:
    assert_same(list(foremoe(problem)), list(plan_stage(problem)))


@pytest.mark.parametrize("spare_slots", [1, 2, 4])
@pytest.mark.parametrize("target", [None, 1.02, 1.1])
def test_kernels_equal_the_reference_on_bursty_loads(
    spare_slots: int, target: float | None
) -> None:
    problem = skewed_problem(7, 16, 4, 64, spare_slots, target)
    assert_same(list(foremoe(problem)), list(plan_stage(problem)))


def test_planning_twice_gives_the_same_bytes() -> None:
    problem = skewed_problem(3, 8, 8, 32, 2)
    assert_same(list(foremoe(problem)), list(foremoe(problem)))


@pytest.mark.parametrize("ranks_per_node", [2, 8])
@pytest.mark.parametrize("target", [1.1, 1.3])
def test_kernels_equal_the_reference_where_many_choices_tie(
    ranks_per_node: int, target: float
) -> None:
    load = 10 * np.random.default_rng(0).integers(0, 3, (30, 1, 8, 16))
    load[:, :, 1:] = 0
    problem = StageProblem(
        load=load,
        home=np.arange(16, dtype=np.int32)[None] // 2,
        mini_batch=np.zeros(30, np.int32),
        topology=Topology(8, ranks_per_node),
        spare_slots=2,
        target=target,
    )
    assert_same(list(foremoe(problem)), list(plan_stage(problem)))
