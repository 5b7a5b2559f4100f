"""The compiled baselines and their plain-Python twins place alike, to the last pair."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foremoe.planner import baselines_reference, eplb, greedy
from foremoe.planner.problem import StageProblem
from tests.planner.problems import problems, skewed_problem


def check_twins(problem: StageProblem, width: int) -> None:
    for load in problem.load:
        weight = load.sum(axis=1)
        asked = weight, problem.home, problem.topology.ranks, problem.spare_slots, width
        for kernel, twin in (
            (greedy.greedy_replicas, baselines_reference.greedy_replicas),
            (eplb.eplb_placement, baselines_reference.eplb_placement),
        ):
            for found, expected in zip(kernel(*asked), twin(*asked), strict=True):
                assert np.array_equal(found, expected)
                assert found.dtype == expected.dtype


@settings(max_examples=50, deadline=None)
@given(problem=problems(), confined=st.booleans())
def test_small_problems(problem: StageProblem, confined: bool) -> None:
    topology = problem.topology
    check_twins(problem, topology.ranks_per_node if confined else topology.ranks)


def test_a_large_skewed_problem() -> None:
    problem = skewed_problem(3, 32, 8, 128, 2, micro_steps=1)
    for width in (8, 32):
        check_twins(problem, width)
