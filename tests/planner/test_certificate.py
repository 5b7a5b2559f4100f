"""Certificates: bounds that hold, and what crosses nodes shows."""

import numpy as np
from hypothesis import given, settings

from foremoe.planner.certificate import certificate
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem
from tests.planner.problems import problems, skewed_problem


@settings(max_examples=60, deadline=None)
@given(problems())
def test_no_plan_is_below_its_bounds(problem: StageProblem) -> None:
    width = problem.topology.ranks_per_node
    for policy in (
        "foremoe",
        "greedy",
        "greedy-in-node",
        "alias-in-node",
        "eplb-oracle-in-node",
        "none",
    ):
        for plan in POLICIES[policy](problem):
            found = certificate(plan, width)
            assert np.all(found.mean <= found.fixed_homes)
            assert np.all(found.fixed_homes <= found.achieved)
            assert np.all(found.gap >= 0)
            np.testing.assert_array_equal(found.achieved, plan.rank_tokens().max(axis=1))
            if policy in ("greedy-in-node", "alias-in-node", "none"):
                assert np.all(found.topology <= found.achieved)


def test_a_full_node_shows_in_the_topology_bound() -> None:
    load = np.zeros((1, 1, 4, 4), np.int64)
    load[0, 0, 0] = [30, 9, 1, 0]
    problem = StageProblem(
        load,
        np.arange(4, dtype=np.int32)[None],
        np.zeros(1, np.int32),
        skewed_problem(0, 4, 2, 4, 1).topology,
        1,
    )
    (plan,) = POLICIES["foremoe"](problem)
    found = certificate(plan, 2)
    assert (found.mean[0], found.topology[0], found.fixed_homes[0]) == (10, 20, 10)
    assert found.achieved[0] < 20, "the plan moved pairs across nodes"
