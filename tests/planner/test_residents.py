"""Planning over time: the target is kept, slots change little, and the twin agrees."""

import dataclasses
import doctest
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from foremoe.planner import over_time, residents_reference
from foremoe.planner.imbalance import imbalance
from foremoe.planner.over_time import resident
from foremoe.planner.plan import Plan, home_tokens
from foremoe.planner.policies import foremoe
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.residents_reference import plan_stage
from foremoe.planner.validate import validate
from tests.planner.problems import problems, skewed_problem
from tests.planner.test_reference import assert_same


def copies(plans: list[Plan]) -> NDArray[np.int64]:
    """Replicas that were not on their rank in the micro-step before: ``[M, L]``."""
    held = np.stack([plan.replica_expert for plan in plans])
    before = np.concatenate([np.full_like(held[:1], -1), held[:-1]])
    stays = (held[..., :, None] == before[..., None, :]).any(axis=-1)
    return np.asarray(((held >= 0) & ~stays).sum(axis=(2, 3)), np.int64)


@settings(max_examples=150, deadline=None)
@given(problems(max_micro_steps=5))
def test_kernels_equal_the_reference(problem: StageProblem) -> None:
    assert_same(list(resident(problem)), list(plan_stage(problem)))


@pytest.mark.parametrize("spare_slots", [1, 2, 4])
@pytest.mark.parametrize("ranks_per_node", [4, 8])
def test_kernels_equal_the_reference_on_bursty_loads(spare_slots: int, ranks_per_node: int) -> None:
    problem = skewed_problem(11, 8, ranks_per_node, 32, spare_slots, 1.05, micro_steps=12, layers=2)
    assert_same(list(resident(problem)), list(plan_stage(problem)))


def test_kernels_equal_the_reference_beyond_the_lookahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_time, "LOOKAHEAD", 3)
    monkeypatch.setattr(residents_reference, "LOOKAHEAD", 3)
    problem = skewed_problem(12, 8, 4, 32, 2, 1.05, micro_steps=12, layers=2)
    assert_same(list(resident(problem)), list(plan_stage(problem)))


@settings(max_examples=100, deadline=None)
@given(problems(max_micro_steps=4))
def test_plans_are_valid_and_as_balanced_as_planned_alone(problem: StageProblem) -> None:
    target = problem.target or 1.02
    alone = foremoe(dataclasses.replace(problem, target=target))
    for plan, other, load in zip(resident(problem), alone, problem.load, strict=True):
        validate(plan, load, problem.topology, problem.spare_slots)
        reached = imbalance(plan.rank_tokens())
        assert np.all((reached <= target) | (reached <= imbalance(other.rank_tokens())))
        assert np.all(plan.rank_tokens().max(axis=1) <= home_tokens(load, problem.home).max(axis=1))


def test_the_examples_of_merging_hold() -> None:
    assert doctest.testmod(over_time) == (0, 2)


def test_residents_save_most_copies() -> None:
    problem = similar_micro_steps()
    over_time, alone = list(resident(problem)), list(foremoe(problem))
    assert copies(over_time).sum() * 4 < copies(alone).sum()
    assert imbalance(np.stack([plan.rank_tokens() for plan in over_time])).max() <= 1.02


def test_a_resident_never_moves_to_another_slot() -> None:
    plans = list(resident(similar_micro_steps()))
    for before, after in pairwise(plans):
        for held, now in zip(
            before.replica_expert.reshape(-1, 2), after.replica_expert.reshape(-1, 2), strict=True
        ):
            assert held[0] < 0 or held[0] != now[1]
            assert held[1] < 0 or held[1] != now[0]


def test_looking_ahead_copies_what_serves_longest() -> None:
    """Rank 0 may be relieved by either of its experts; only expert 1 stays hot afterwards."""
    load = np.zeros((4, 1, 2, 4), np.int64)
    load[0, 0, 0] = [10, 10, 10, 10]  # nothing to do in the first micro-step
    load[1, 0, 0] = [20, 20, 0, 0]
    load[2, 0, 0] = [0, 40, 0, 0]
    load[3, 0, 0] = [0, 40, 0, 0]
    plans = list(resident(two_ranks(load)))
    assert [plan.replica_expert[0, 1, 0] for plan in plans] == [-1, 1, 1, 1]


def test_a_new_mini_batch_starts_with_empty_slots() -> None:
    """Weights change between mini-batches: nothing stays, so nothing is held without need."""
    load = np.zeros((3, 1, 2, 4), np.int64)
    load[:2, 0, 0, 0] = 40
    load[2, 0, 0] = [10, 10, 10, 10]
    one = [plan.replica_expert[0, 1, 0] for plan in resident(two_ranks(load))]
    problem = dataclasses.replace(two_ranks(load), mini_batch=np.array([0, 0, 1], np.int32))
    two = [plan.replica_expert[0, 1, 0] for plan in resident(problem)]
    assert (one, two) == ([0, 0, 0], [0, 0, -1])


def similar_micro_steps() -> StageProblem:
    """A stable skew with some noise, as the micro-steps of one RL step have."""
    generator = np.random.default_rng(0)
    share = generator.dirichlet(np.full(32, 0.7), (1, 3, 1))
    load = generator.poisson(share * 40000, (24, 3, 8, 32)).astype(np.int64)
    return StageProblem(
        load=load,
        home=np.tile(np.arange(32) * 8 // 32, (3, 1)).astype(np.int32),
        mini_batch=np.zeros(24, np.int32),
        topology=Topology(8, 8),
        spare_slots=2,
        target=1.02,
    )


def two_ranks(load: NDArray[np.int64]) -> StageProblem:
    return StageProblem(
        load=load,
        home=np.array([[0, 0, 1, 1]], np.int32),
        mini_batch=np.zeros(len(load), np.int32),
        topology=Topology(2, 2),
        spare_slots=1,
        target=1.02,
    )
