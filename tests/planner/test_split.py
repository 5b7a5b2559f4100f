"""The split by source: exact, and tokens stay as near as the quotas allow."""

import numpy as np
from hypothesis import given, settings

from foremoe.planner.policies import foremoe
from foremoe.planner.problem import StageProblem
from foremoe.planner.split import split_by_source
from tests.planner.problems import problems


def split(load: list[int], owner: int, quotas: dict[int, int]) -> list[list[int]]:
    """Expert 0 at home on ``owner``; one line per source, one column per rank, nodes of two."""
    ranks = len(load)
    replica_expert = np.full((1, ranks, 1), -1, np.int32)
    quota = np.zeros((1, ranks, 1), np.int64)
    for rank, count in quotas.items():
        replica_expert[0, rank, 0], quota[0, rank, 0] = 0, count
    home = np.full((1, 1), owner, np.int32)
    tokens = split_by_source(
        np.array(load, np.int64)[None, :, None], home, replica_expert, quota, 2
    )
    served: list[list[int]] = tokens[0, :, :, 0].tolist()
    return served


def test_own_tokens_come_first() -> None:
    assert split([5, 5, 5, 5], owner=0, quotas={2: 5})[2] == [0, 0, 5, 0]


def test_then_the_same_node_then_other_nodes_then_the_homes_node_and_the_home_last() -> None:
    taken = [
        np.array(split([5] * 6, owner=0, quotas={2: quota}))[:, 2].tolist()
        for quota in (5, 10, 20, 25, 30)
    ]
    assert taken == [
        [0, 0, 5, 0, 0, 0],
        [0, 0, 5, 5, 0, 0],
        [0, 0, 5, 5, 5, 5],
        [0, 5, 5, 5, 5, 5],
        [5, 5, 5, 5, 5, 5],
    ]


def test_of_a_node_the_source_that_sends_most_afar_is_served_first() -> None:
    load = np.array([[0, 0], [0, 0], [0, 0], [4, 0], [4, 0], [4, 3]], np.int64)
    expert, quota = np.full((1, 6, 1), -1, np.int32), np.zeros((1, 6, 1), np.int64)
    home = np.array([[0, 1]], np.int32)
    expert[0, 3], quota[0, 3] = 0, 4 + 3
    served = split_by_source(load[None], home, expert, quota, 3)
    assert served[0, :, 3, 0].tolist() == [0, 0, 0, 4, 0, 3]
    quota[0, 3] = 4 + 5
    served = split_by_source(load[None], home, expert, quota, 3)
    assert served[0, :, 3, 0].tolist() == [0, 0, 0, 4, 1, 4]


def test_beside_its_home_a_replica_takes_one_nodes_share_of_what_is_near_to_both() -> None:
    served = np.array(split([0, 4, 6, 6, 6, 6], owner=0, quotas={1: 13}))
    assert served[:, 1].tolist() == [0, 4, 6, 3, 0, 0]
    ranks = [0, 0, 12, 12, 12, 12]
    served = np.array(split(ranks, owner=2, quotas={3: 18}))
    assert served[:, 3].tolist() == [0, 0, 0, 12, 6, 0]
    wide = np.full((1, 6, 1), 4, np.int64)
    expert, quota = np.full((1, 6, 1), -1, np.int32), np.zeros((1, 6, 1), np.int64)
    expert[0, 1], quota[0, 1] = 0, 10
    taken = split_by_source(wide, np.zeros((1, 1), np.int32), expert, quota, 3)
    assert taken[0, :, 1, 0].tolist() == [0, 4, 3, 3, 0, 0]
    quota[0, 1] = 19
    taken = split_by_source(wide, np.zeros((1, 1), np.int32), expert, quota, 3)
    assert taken[0, :, 1, 0].tolist() == [0, 4, 4, 4, 4, 3]


def test_a_replica_does_not_take_what_is_nearer_to_another() -> None:
    served = np.array(split([0, 0, 2, 2, 3, 3], owner=0, quotas={2: 5, 4: 4}))
    assert served[:, 4].tolist() == [0, 0, 0, 0, 3, 1]
    assert served[:, 2].tolist() == [0, 0, 2, 2, 0, 1]


@settings(max_examples=100, deadline=None)
@given(problems())
def test_every_quota_is_served_and_no_source_gives_more_than_it_has(problem: StageProblem) -> None:
    for plan in foremoe(problem):
        layers, ranks, experts = plan.load.shape
        taken = np.zeros((layers, ranks, experts), np.int64)
        for layer, rank, slot in np.argwhere(plan.replica_expert >= 0):
            expert = plan.replica_expert[layer, rank, slot]
            taken[layer, :, expert] += plan.replica_tokens[layer, :, rank, slot]
            own = plan.replica_tokens[layer, rank, rank, slot]
            quota = plan.replica_tokens[layer, :, rank, slot].sum()
            assert own == min(quota, plan.load[layer, rank, expert])
        assert np.all(taken <= plan.load)
