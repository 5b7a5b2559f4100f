"""What crosses nodes: pairs that stay near are worth copies, and nodes are evened out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from foremoe.planner.between_nodes import between_nodes
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan, placed_tokens
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem, Topology
from tests.planner.problems import pairs_by_node, problems

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


@pytest.mark.parametrize("peer", ["greedy", "alias"])
@pytest.mark.parametrize("spare_slots", [1, 2])
def test_less_crosses_nodes_than_under_a_peer_of_the_same_balance(
    peer: str, spare_slots: int
) -> None:
    """Eight nodes of eight ranks with one sequence each, spread around a common heat."""
    generator = np.random.default_rng(0)
    heat = 36 * generator.dirichlet(np.full(128, 0.7), 2)
    load = [[generator.multinomial(4096, generator.dirichlet(h)) for _ in range(64)] for h in heat]
    problem = StageProblem(
        load=np.array([load]),
        home=contiguous_homes(2, 128, 64),
        mini_batch=np.zeros(1, np.int32),
        topology=Topology(64, 8),
        spare_slots=spare_slots,
    )
    (other,) = POLICIES[peer](problem)
    target = float(imbalance(other.rank_tokens()).mean())
    (plan,) = POLICIES["foremoe"](dataclasses.replace(problem, target=target))
    assert imbalance(plan.rank_tokens()).mean() <= target
    copies, pairs = crossing(plan)
    other_copies, other_pairs = crossing(other)
    assert 0 < copies < other_copies
    assert pairs < other_pairs


def crossing(plan: Plan, ranks_per_node: int = 8) -> tuple[int, int]:
    """Replicas outside their home's node, and pairs computed outside the node of their source."""
    layer, rank, slot = np.nonzero(plan.replica_expert >= 0)
    expert = plan.replica_expert[layer, rank, slot]
    node, owner = rank // ranks_per_node, plan.home[layer, expert] // ranks_per_node
    served = plan.replica_tokens[layer, :, rank, slot]  # [replicas, sources]
    source = np.arange(served.shape[1]) // ranks_per_node
    left = plan.load.copy()
    np.subtract.at(left, (layer, slice(None), expert), served)
    far = (plan.home // ranks_per_node)[:, None, :] != source[:, None]  # [L, sources, E]
    pairs = served[source != node[:, None]].sum() + left[far].sum()
    return int(np.count_nonzero(node != owner)), int(pairs)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_replicas_cross_nodes_and_bring_nobody_above_the_threshold(problem: StageProblem) -> None:
    topology, home = problem.topology, problem.home
    for origin, threshold in pairs_by_node(problem):
        weight, layers = origin.sum(axis=1), len(origin)
        expert, quota = between_nodes(
            origin,
            home,
            threshold,
            np.ones(layers, np.int64),
            topology.ranks,
            problem.spare_slots,
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
