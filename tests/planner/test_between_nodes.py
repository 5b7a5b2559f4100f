"""What crosses nodes: pairs that stay near are worth copies, and nodes are evened out."""

import numpy as np
from hypothesis import given, settings
from numpy.typing import NDArray

from foremoe.planner.between_nodes import between_nodes
from foremoe.planner.plan import placed_tokens
from foremoe.planner.problem import StageProblem
from tests.planner.problems import problems

HOME = np.array([[0, 0, 1, 1, 2, 2, 3, 3]], np.int32)  # four ranks, two nodes


def chosen(
    origin: list[list[int]], threshold: int, worth: int, spare_slots: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas and quotas ``[P, R]`` of one layer with ``origin[node][expert]`` pairs."""
    expert, quota = between_nodes(
        np.array([origin], np.int64), HOME, np.array([threshold]), np.array([worth]), 4, spare_slots
    )
    return expert[0], quota[0]


def test_pairs_that_a_replica_keeps_in_their_node_pay_for_it() -> None:
    """A worked example: node 1 sends 30 pairs to expert 0 of node 0, whose rank has 20 too many."""
    origin = [[30, 0, 5, 5, 0, 0, 0, 0], [30, 0, 0, 0, 10, 10, 5, 5]]
    expert, quota = chosen(origin, threshold=40, worth=20)
    assert expert[:, 0].tolist() == [-1, -1, -1, 0]
    assert quota[3, 0] == 30  # what keeps them near, not only the 20 above the threshold
    expert, _ = chosen(origin, threshold=40, worth=31)
    assert (expert == -1).all(), "the nodes are even, and nothing is worth a copy"


def test_a_full_node_gives_to_the_emptiest() -> None:
    origin = [[20, 20, 20, 20, 5, 5, 5, 5], [0] * 8]
    expert, quota = chosen(origin, threshold=26, worth=1000)
    placed = expert[:, 0] >= 0
    assert not placed[:2].any()
    assert placed[2:].any()
    assert 80 - 2 * 26 <= quota.sum() <= 2 * 26 - 20


def test_balanced_layers_are_left_alone() -> None:
    expert, quota = chosen([[10] * 8, [10] * 8], threshold=40, worth=1)
    assert (expert == -1).all()
    assert (quota == 0).all()


@settings(max_examples=100, deadline=None)
@given(problems())
def test_replicas_cross_nodes_and_bring_nobody_above_the_threshold(problem: StageProblem) -> None:
    topology, home = problem.topology, problem.home
    for load in problem.load:
        layers, ranks, experts = load.shape
        origin = load.reshape(layers, topology.nodes, -1, experts).sum(axis=2)
        weight = origin.sum(axis=1)
        threshold = weight.sum(axis=1) * 5 // (4 * ranks) + 1
        expert, quota = between_nodes(
            origin, home, threshold, np.ones(layers, np.int64), ranks, problem.spare_slots
        )
        layer, rank, slot = np.nonzero(expert >= 0)
        owner = home[layer, expert[layer, rank, slot]]
        assert np.all(owner // topology.ranks_per_node != rank // topology.ranks_per_node)
        assert np.all(quota[expert < 0] == 0)
        assert np.all(quota[expert >= 0] > 0)
        before = placed_tokens(weight, home, np.full_like(expert, -1), np.zeros_like(quota))
        after = placed_tokens(weight, home, expert, quota)
        assert np.all(after <= np.maximum(before, threshold[:, None]))
        given_away = np.zeros_like(weight)
        np.add.at(given_away, (layer, expert[layer, rank, slot]), quota[layer, rank, slot])
        assert np.all(given_away <= weight)
