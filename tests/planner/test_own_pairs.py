"""Own pairs: ranks compute more of their own, and as many as before."""

import numpy as np
from hypothesis import given, settings

from foremoe.planner.cost import CostModel
from foremoe.planner.own_pairs import keep_own_pairs
from foremoe.planner.own_pairs_reference import keep_own_pairs as keep_own_pairs_of_a_layer
from foremoe.planner.plan import Plan, placed_tokens
from foremoe.planner.policies import foremoe
from foremoe.planner.problem import StageProblem
from foremoe.planner.validate import validate
from tests.planner.problems import problems, skewed_problem
from tests.planner.test_even_dispatch import received_afar


@settings(max_examples=80, deadline=None)
@given(problems(max_pairs=2**33))
def test_the_kernel_equals_the_reference(problem: StageProblem) -> None:
    assert_equal_to_the_reference(problem)


def test_the_kernel_equals_the_reference_where_slots_are_full() -> None:
    for seed in range(4):
        assert_equal_to_the_reference(skewed_problem(seed, 8, 8, 24, 1, micro_steps=2))


def assert_equal_to_the_reference(problem: StageProblem) -> None:
    for plan in foremoe(problem):
        quota = plan.replica_tokens.sum(axis=1)
        expert, pairs = keep_own_pairs(plan.load, plan.home, plan.replica_expert, quota)
        for layer in range(len(plan.home)):
            expected = keep_own_pairs_of_a_layer(
                plan.load[layer], plan.home[layer], plan.replica_expert[layer], quota[layer]
            )
            np.testing.assert_array_equal(expert[layer], expected[0])
            np.testing.assert_array_equal(pairs[layer], expected[1])


def test_fewer_pairs_change_their_rank_and_each_rank_computes_as_many() -> None:
    problem = skewed_problem(3, 8, 8, 64, 2, micro_steps=4)
    before = after = 0
    for plan in foremoe(problem):
        quota = plan.replica_tokens.sum(axis=1)
        expert, pairs = keep_own_pairs(plan.load, plan.home, plan.replica_expert, quota)
        tokens = placed_tokens(plan.load.sum(axis=1), plan.home, expert, pairs)
        np.testing.assert_array_equal(tokens, plan.rank_tokens())
        was = received_afar(plan.load, plan.home, (plan.replica_expert, quota), width=1)
        became = received_afar(plan.load, plan.home, (expert, pairs), width=1)
        assert np.all(became <= was)
        before, after = before + was.sum(), after + became.sum()
    assert after < 0.98 * before


def test_plans_by_time_gain_where_dispatch_in_a_node_is_slow() -> None:
    prices = dict.fromkeys(CostModel.__dataclass_fields__, 0)
    slow = CostModel(**{**prices, "pair": 10, "node_pair": 10})
    problem = skewed_problem(1, 8, 8, 64, 2, micro_steps=2)
    by_time = StageProblem(
        problem.load, problem.home, problem.mini_batch, problem.topology, 2, None, slow
    )
    busiest = []
    for asked in (problem, by_time):
        plans = list(foremoe(asked))
        for plan, load in zip(plans, problem.load, strict=True):
            validate(plan, load, problem.topology, 2)
        busiest.append(sum(_received_and_computed(plan) for plan in plans))
    assert busiest[1] < 0.98 * busiest[0]


def _received_and_computed(plan: Plan) -> int:
    quota = plan.replica_tokens.sum(axis=1)
    foreign = received_afar(plan.load, plan.home, (plan.replica_expert, quota), width=1)
    return int((foreign + plan.rank_tokens().max(axis=1)).sum())
