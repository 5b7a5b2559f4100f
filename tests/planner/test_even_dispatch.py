"""Even dispatch: the rank that receives most from afar receives less, and nothing is lost."""

import numpy as np
from hypothesis import given, settings
from numpy.typing import NDArray

from foremoe.planner.cost import CostModel
from foremoe.planner.even_dispatch import CAP, even_dispatch
from foremoe.planner.even_dispatch_reference import even_dispatch_layer
from foremoe.planner.plan import placed_tokens
from foremoe.planner.policies import foremoe
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.validate import validate
from tests.planner.problems import problems, skewed_problem

Choice = tuple[NDArray[np.int32], NDArray[np.int64]]


@settings(max_examples=80, deadline=None)
@given(problems(max_pairs=2**33))
def test_the_kernel_equals_the_reference(problem: StageProblem) -> None:
    for plan in foremoe(problem):
        origin = problem.topology.by_node(plan.load)
        quota = plan.replica_tokens.sum(axis=1)
        expert, pairs = even_dispatch(origin, plan.home, plan.replica_expert, quota)
        for layer, home in enumerate(plan.home.tolist()):
            given_slots = plan.replica_expert[layer].tolist()
            expected = even_dispatch_layer(
                origin[layer].tolist(), home, given_slots, quota[layer].tolist()
            )
            assert (expert[layer].tolist(), pairs[layer].tolist()) == expected


def test_less_comes_from_afar_and_compute_stays_within_the_cap() -> None:
    problem = skewed_problem(3, 16, 4, 64, 2, micro_steps=4)
    before = after = 0
    for plan in foremoe(problem):
        quota = plan.replica_tokens.sum(axis=1)
        origin = problem.topology.by_node(plan.load)
        choice = even_dispatch(origin, plan.home, plan.replica_expert, quota)
        tokens = placed_tokens(origin.sum(axis=1), plan.home, *choice)
        assert tokens.sum() == plan.load.sum()
        assert np.all(tokens.max(axis=1) <= np.maximum(
            plan.rank_tokens().max(axis=1), tokens.mean(axis=1) * CAP / 100
        ))  # fmt: skip
        assert np.all((choice[1] > 0) == (choice[0] >= 0))
        before += received_afar(plan.load, plan.home, (plan.replica_expert, quota)).sum()
        after += received_afar(plan.load, plan.home, choice).sum()
    assert after < 0.9 * before


def test_plans_by_time_gain_where_dispatch_between_nodes_is_slow() -> None:
    prices = dict.fromkeys(CostModel.__dataclass_fields__, 0)
    far = CostModel(**{**prices, "pair": 1, "far_pair": 10})
    problem = skewed_problem(1, 16, 4, 64, 2, micro_steps=2)
    by_time = StageProblem(
        problem.load, problem.home, problem.mini_batch, problem.topology, 2, None, far
    )
    received = []
    for asked in (problem, by_time):
        plans = list(foremoe(asked))
        for plan, load in zip(plans, problem.load, strict=True):
            validate(plan, load, problem.topology, 2)
        choices = [(plan.replica_expert, plan.replica_tokens.sum(axis=1)) for plan in plans]
        afar = [received_afar(p.load, p.home, c) for p, c in zip(plans, choices, strict=True)]
        received.append(np.sum(afar))
    assert received[1] < 0.78 * received[0]  # 0.86 by the targets alone


def received_afar(
    load: NDArray[np.int64], home: NDArray[np.int32], choice: Choice, width: int = 4
) -> NDArray[np.int64]:
    """Most pairs that a rank receives from other nodes, near ones served first: ``[L]``."""
    replica_expert, quota = choice
    layers, ranks, experts = load.shape
    origin = Topology(ranks, width).by_node(load)
    most = np.zeros(layers, np.int64)
    for layer in range(layers):
        pairs = np.zeros((ranks, experts), np.int64)
        for rank, slot in np.argwhere(replica_expert[layer] >= 0):
            pairs[rank, replica_expert[layer, rank, slot]] += quota[layer, rank, slot]
        left = load[layer].sum(axis=0) - pairs.sum(axis=0)
        pairs[home[layer], np.arange(experts)] += left
        hosted = pairs.reshape(ranks // width, width, experts).sum(axis=1)
        share = np.minimum(origin[layer], hosted) / np.maximum(hosted, 1)
        near = pairs * np.repeat(share, width, axis=0)
        most[layer] = (pairs.sum(axis=1) - near.sum(axis=1)).max()
    return most
