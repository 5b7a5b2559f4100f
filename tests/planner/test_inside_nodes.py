"""The level inside nodes alone: it adds to what crosses nodes, or leaves everything as it was."""

import numpy as np
from hypothesis import given, settings
from numpy.typing import NDArray

from foremoe.planner.inside_nodes import inside_nodes
from foremoe.planner.plan import placed_tokens
from foremoe.planner.problem import StageProblem
from tests.planner.problems import pairs_by_node, problems

HOME = np.array([[0, 0, 1, 1, 2, 2, 3, 3]], np.int32)  # four ranks, two nodes
NOTHING = np.full((1, 4, 1), -1, np.int32)


def added(
    origin: list[list[int]], threshold: int, crossing: NDArray[np.int32], quota: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], bool]:
    """Replicas and quotas ``[P]`` of one layer and one slot, and whether the threshold is met."""
    pairs = np.array([origin], np.int64)
    worth, least = np.array([20], np.int64), np.array([threshold], np.int64)
    expert, served = crossing.copy(), quota.copy()
    reached = inside_nodes(pairs, pairs.sum(axis=1), HOME, least, worth, expert, served)
    return expert[0, :, 0], served[0, :, 0], bool(reached[0])


def test_nodes_that_can_share_within_copy_nothing_across() -> None:
    origin = [[60, 0, 20, 0, 0, 0, 0, 0], [0, 0, 0, 0, 50, 0, 30, 0]]
    expert, quota, reached = added(origin, 40, NOTHING, np.zeros((1, 4, 1), np.int64))
    assert reached
    assert expert.tolist() == [-1, 0, -1, 4]
    assert quota.tolist() == [0, 20, 0, 10]


def test_what_crosses_nodes_already_is_built_upon() -> None:
    """The replica on rank 3 keeps 25 pairs in their node; rank 0 is left with 15 too many."""
    origin = [[60, 0, 10, 0, 0, 0, 0, 0], [30, 0, 0, 0, 50, 0, 25, 0]]
    crossing, quota = NOTHING.copy(), np.zeros((1, 4, 1), np.int64)
    crossing[0, 3, 0], quota[0, 3, 0] = 0, 25
    expert, served, reached = added(origin, 50, crossing, quota)
    assert reached
    assert expert.tolist() == [-1, 0, -1, 0]
    assert served[3] == 25
    assert 15 <= served[1] <= 40


def test_a_threshold_out_of_reach_changes_nothing() -> None:
    origin = [[60, 60, 0, 0, 0, 0, 0, 0], [0] * 8]
    expert, quota, reached = added(origin, 20, NOTHING, np.zeros((1, 4, 1), np.int64))
    assert not reached
    assert (expert == -1).all()
    assert (quota == 0).all()


@settings(max_examples=100, deadline=None)
@given(problems())
def test_reached_layers_are_at_the_threshold_and_others_as_they_were(problem: StageProblem) -> None:
    topology, home = problem.topology, problem.home
    for origin, threshold in pairs_by_node(problem):
        weight, layers = origin.sum(axis=1), len(origin)
        expert = np.full((layers, topology.ranks, problem.spare_slots), -1, np.int32)
        quota = np.zeros(expert.shape, np.int64)
        worth = np.ones(layers, np.int64)
        reached = inside_nodes(origin, weight, home, threshold, worth, expert, quota)
        tokens = placed_tokens(weight, home, expert, quota)
        if problem.spare_slots:
            np.testing.assert_array_equal(reached, tokens.max(axis=1) <= threshold)
        assert np.all(expert[~reached] == -1)
        assert np.all(quota[expert < 0] == 0)
        assert np.all(quota[expert >= 0] > 0)
        layer, rank, slot = np.nonzero(expert >= 0)
        given_away = np.zeros_like(weight)
        np.add.at(given_away, (layer, expert[layer, rank, slot]), quota[layer, rank, slot])
        assert np.all(given_away <= weight)
