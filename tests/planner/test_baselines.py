"""Baselines obey the same rules, or a comparison with them would mean nothing."""

import numpy as np
import pytest
from hypothesis import given, settings

from foremoe.planner.baselines import lpt
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem
from foremoe.planner.validate import validate
from tests.planner.problems import problems, skewed_problem

BASELINES = [name for name in POLICIES if name not in ("none", "foremoe", "resident")]


@pytest.mark.parametrize("policy", BASELINES)
@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_baselines_give_valid_plans(policy: str, problem: StageProblem) -> None:
    plans = list(POLICIES[policy](problem))
    for plan, load in zip(plans, problem.load, strict=True):
        validate(plan, load, problem.topology, problem.spare_slots)


CONFINED = [name for name in BASELINES if name.endswith("-in-node")]


@pytest.mark.parametrize("policy", CONFINED)
def test_confined_replicas_stay_in_their_node(policy: str) -> None:
    for plan in list(POLICIES[policy](skewed_problem(0, 8, 2, 32, 2, micro_steps=2)))[1:]:
        assert plan.replicas() > 0
        layer, rank, slot = np.nonzero(plan.replica_expert >= 0)
        owner = plan.home[layer, plan.replica_expert[layer, rank, slot]]
        assert np.array_equal(owner // 2, rank // 2)
        assert np.array_equal(plan.home // 2, contiguous_homes(*plan.home.shape, 8) // 2)


@pytest.mark.parametrize("policy", BASELINES)
def test_each_baseline_beats_doing_nothing_on_bursty_loads(policy: str) -> None:
    problem = skewed_problem(1, 8, 8, 64, 2, micro_steps=8)
    problem.load[1:] = problem.load[0] + problem.load[1:] // 8  # stable enough for history
    mean = {
        name: np.mean([imbalance(plan.rank_tokens()) for plan in POLICIES[name](problem)])
        for name in (policy, "none", "foremoe")
    }
    assert mean["foremoe"] <= mean[policy] < mean["none"]


def test_lpt_puts_the_heaviest_expert_on_the_emptiest_rank() -> None:
    assert lpt(np.array([1, 9, 5, 4]), 2).tolist() == [0, 0, 1, 1]
