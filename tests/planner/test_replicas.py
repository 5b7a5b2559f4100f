"""What replicas achieve and what they never do."""

import numpy as np
import pytest
from hypothesis import given, settings

from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan, home_tokens
from foremoe.planner.policies import POLICIES, foremoe
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.validate import validate
from tests.planner.problems import problems, skewed_problem


@settings(max_examples=150, deadline=None)
@given(problems())
def test_plans_are_valid_never_worse_and_above_their_bound(problem: StageProblem) -> None:
    for plan, load in zip(foremoe(problem), problem.load, strict=True):
        validate(plan, load, problem.topology, problem.spare_slots)
        busiest = plan.rank_tokens().max(axis=1)
        assert np.all(busiest <= home_tokens(load, problem.home).max(axis=1))
        assert np.all(busiest >= plan.bound)
        assert np.all(plan.rank_tokens().sum(axis=1) == load.sum(axis=(1, 2)))
        used = plan.replica_expert >= 0
        assert np.all(plan.replica_tokens.sum(axis=1)[used] > 0), "a replica without tokens"


@settings(max_examples=60, deadline=None)
@given(problems())
def test_a_plan_meets_its_target_or_beats_or_equals_homes_alone(problem: StageProblem) -> None:
    if problem.target is None:
        return
    without_target = StageProblem(
        problem.load, problem.home, problem.mini_batch, problem.topology, problem.spare_slots
    )
    for plan, best in zip(foremoe(problem), foremoe(without_target), strict=True):
        reached = imbalance(plan.rank_tokens())
        assert np.all((reached <= problem.target) | (reached <= imbalance(best.rank_tokens())))


def test_a_target_saves_replicas() -> None:
    exact = sum(plan.replicas() for plan in foremoe(skewed_problem(1, 8, 8, 32, 2)))
    relaxed = sum(plan.replicas() for plan in foremoe(skewed_problem(1, 8, 8, 32, 2, target=1.1)))
    assert 0 < relaxed < exact


def test_bursty_loads_are_balanced_almost_exactly() -> None:
    problem = skewed_problem(2, 8, 8, 64, 2)
    assert max(imbalance(plan.rank_tokens()).max() for plan in foremoe(problem)) < 1.002


def test_one_hot_expert_is_shared_by_all_ranks() -> None:
    """A worked example: all 40 pairs on expert 0; every other rank takes 10 of them."""
    load = np.zeros((1, 1, 4, 4), np.int64)
    load[0, 0, :, 0] = 10
    (plan,) = foremoe(_problem(load, ranks_per_node=4))
    assert plan.replica_expert.tolist() == [[[-1], [0], [0], [0]]]
    assert plan.rank_tokens().tolist() == [[10, 10, 10, 10]]
    # Locality: each rank computes the pairs it originates, so nothing travels.
    served = plan.replica_tokens[0, :, :, 0]
    np.testing.assert_array_equal(served, np.diag([0, 10, 10, 10]))


def test_a_receiver_in_the_own_node_is_preferred() -> None:
    load = np.zeros((1, 1, 4, 4), np.int64)
    load[0, 0, 2] = [0, 0, 8, 4]  # rank 2 has 4 too many; ranks 0 and 1 are farther than rank 3
    load[0, 0, 1] = [4, 4, 0, 0]
    (plan,) = foremoe(_problem(load, ranks_per_node=2, target=1.25))
    ranks, experts = [3], [2]
    assert np.flatnonzero(plan.replica_expert[0, :, 0] >= 0).tolist() == ranks
    assert plan.replica_expert[0, ranks, 0].tolist() == experts


def test_nodes_that_are_even_need_no_copies_from_outside() -> None:
    """Each node has all the tokens it can hold, and they originate there; its ranks do not."""
    load = np.zeros((1, 1, 8, 16), np.int64)
    load[0, 0, 0, :8] = load[0, 0, 4, 8:] = [300, 100, 40, 60, 20, 180, 0, 100]
    problem = _problem(load, ranks_per_node=4, spare_slots=2, target=1.02)
    (plan,) = foremoe(problem)
    assert imbalance(plan.rank_tokens()).max() <= 1.02
    assert plan.replicas() > 0
    assert outside(plan, 4) == 0


def test_only_what_a_node_has_too_much_crosses_nodes() -> None:
    """Without regard to nodes most copies would cross."""
    near, flat = (
        list(foremoe(skewed_problem(4, 16, ranks_per_node, 64, 2, target=1.05)))
        for ranks_per_node in (4, 16)
    )
    assert all(imbalance(plan.rank_tokens()).max() <= 1.05 for plan in near)
    across, regardless = (sum(outside(plan, 4) for plan in plans) for plans in (near, flat))
    assert 0 < across * 2 <= regardless


def outside(plan: Plan, ranks_per_node: int) -> int:
    """Replicas on another node than their home."""
    layer, rank, slot = np.nonzero(plan.replica_expert >= 0)
    owner = plan.home[layer, plan.replica_expert[layer, rank, slot]]
    return int(np.count_nonzero(owner // ranks_per_node != rank // ranks_per_node))


@pytest.mark.parametrize("policy", POLICIES)
def test_no_tokens_need_no_replicas(policy: str) -> None:
    (plan,) = POLICIES[policy](_problem(np.zeros((1, 2, 4, 8), np.int64), ranks_per_node=4))
    assert plan.replicas() == 0
    assert plan.bound.tolist() == [0, 0]


@pytest.mark.parametrize("policy", POLICIES)
def test_one_rank_or_no_slots_give_the_trivial_plan(policy: str) -> None:
    load = np.arange(12, dtype=np.int64).reshape(1, 1, 1, 12)
    (alone,) = POLICIES[policy](_problem(load, ranks_per_node=1))
    assert alone.replicas() == 0
    assert alone.bound.tolist() == [66]
    load = np.arange(48, dtype=np.int64).reshape(1, 1, 4, 12)
    (slotless,) = POLICIES[policy](_problem(load, ranks_per_node=4, spare_slots=0))
    assert slotless.replica_expert.shape == (1, 4, 0)
    assert slotless.bound.tolist() == slotless.rank_tokens().max(axis=1).tolist()


def _problem(
    load: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    ranks_per_node: int,
    spare_slots: int = 1,
    target: float | None = None,
) -> StageProblem:
    micro_steps, layers, ranks, experts = load.shape
    return StageProblem(
        load=load,
        home=np.tile(np.arange(experts) * ranks // experts, (layers, 1)).astype(np.int32),
        mini_batch=np.zeros(micro_steps, np.int32),
        topology=Topology(ranks, ranks_per_node),
        spare_slots=spare_slots,
        target=target,
    )
