"""The cost model: kernels and twin agree, parts mean what they say, bad figures are refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foremoe.errors import InvalidInputError
from foremoe.planner import pricing_reference
from foremoe.planner.cost import (
    CostModel,
    home_seconds,
    layer_seconds,
    new_replicas,
)
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.over_time import resident
from foremoe.planner.plan import Plan
from foremoe.planner.policies import foremoe
from foremoe.planner.preset import cluster_preset, cost_model, model_preset
from foremoe.planner.pricing import layer_picoseconds, node_picoseconds
from foremoe.planner.problem import StageProblem
from foremoe.planner.split import split_by_source
from foremoe.vocabulary import Stage
from tests.planner.problems import problems, skewed_problem

QWEN = cost_model(model_preset("qwen3-30b-a3b"), cluster_preset("h100"), Stage.UPDATE)
SIMPLE = CostModel(
    launch=5,
    read=100,
    intercept=50,
    pair=10,
    other_pair=1,
    dispatch_latency=7,
    rank_pair=1,
    node_pair=2,
    far_pair=20,
    host_copy=900,
    peer_copy=400,
    network_copy=3000,
    near_gradient=0,
    far_gradient=0,
    near_move=1000,
    far_move=9000,
)
prices = st.builds(
    CostModel,
    **{
        field.name: st.integers(0, 2**28 if field.name.endswith("pair") else 2**40)
        for field in dataclasses.fields(CostModel)
    },
)


@settings(max_examples=150, deadline=None)
@given(problems(max_pairs=2**20), prices)
def test_kernels_equal_the_reference(problem: StageProblem, cost: CostModel) -> None:
    topology, width = problem.topology, problem.topology.ranks_per_node
    for plan in (*foremoe(problem), *resident(problem)):
        copied = new_replicas(plan.replica_expert, np.roll(plan.replica_expert, 1, axis=0))
        parts = layer_picoseconds(
            plan.load, plan.home, plan.replica_expert, plan.replica_tokens, copied, width,
            cost.prices,
        )  # fmt: skip
        quota = plan.replica_tokens.sum(axis=1)
        for layer, home in enumerate(plan.home.tolist()):
            slots = [
                [(rank, slot) for slot, e in enumerate(row) if e >= 0]
                for rank, row in enumerate(plan.replica_expert[layer].tolist())
            ]
            expert = plan.replica_expert[layer].tolist()
            replicas = [[(expert[p][s], int(quota[layer, p, s])) for p, s in row] for row in slots]
            copies = [
                [(e, n, bool(copied[layer, p, s])) for (p, s), (e, n) in zip(*both, strict=True)]
                for both in zip(slots, replicas, strict=True)
            ]
            weight = plan.load[layer].sum(axis=0).tolist()
            flow = flows(plan, layer)
            nothing: list[list[tuple[int, int]]] = [[] for _ in replicas]
            assert parts[layer, 0].tolist() == [
                pricing_reference.compute_time(weight, home, nothing, cost),
                pricing_reference.dispatch_time(flows(without(plan), layer), topology, cost),
                0,
            ]
            assert parts[layer, 1].tolist() == [
                pricing_reference.compute_time(weight, home, replicas, cost),
                pricing_reference.dispatch_time(flow, topology, cost),
                pricing_reference.exposed_time(weight, home, copies, topology, cost),
            ]


@settings(max_examples=150, deadline=None)
@given(problems(max_pairs=2**20), prices)
def test_in_one_node_the_split_need_not_be_made(problem: StageProblem, cost: CostModel) -> None:
    ranks = problem.topology.ranks
    for plan in foremoe(problem):
        quota = plan.replica_tokens.sum(axis=1)
        placed = plan.load, plan.home, plan.replica_expert
        tokens = split_by_source(*placed, quota, ranks)
        copied = plan.replica_expert >= 0
        expected = layer_picoseconds(*placed, tokens, copied, ranks, cost.prices)[:, 1]
        np.testing.assert_array_equal(node_picoseconds(*placed, quota, cost.prices), expected)


def without(plan: Plan) -> Plan:
    return dataclasses.replace(
        plan,
        replica_expert=np.full_like(plan.replica_expert, -1),
        replica_tokens=np.zeros_like(plan.replica_tokens),
    )


def flows(plan: Plan, layer: int) -> list[list[int]]:
    """Pairs by source and rank."""
    left, ranks = plan.load[layer].copy(), plan.load.shape[1]
    flow = np.zeros((ranks, ranks), np.int64)
    for rank, slot in np.argwhere(plan.replica_expert[layer] >= 0):
        served = plan.replica_tokens[layer, :, rank, slot]
        flow[:, rank] += served
        left[:, plan.replica_expert[layer, rank, slot]] -= served
    for expert, owner in enumerate(plan.home[layer]):
        flow[:, owner] += left[:, expert]
    return [[int(count) for count in row] for row in flow]


def test_a_worked_example() -> None:
    """Two nodes of two ranks, one expert each; rank 0 holds all 40 pairs, 10 from each rank."""
    load = np.zeros((1, 4, 4), np.int64)
    load[0, :, 0] = 10
    home = contiguous_homes(1, 4, 4)
    alone = home_seconds(SIMPLE, load, home, 2)
    assert 1e12 * alone.compute[0] == pytest.approx(5 + 50 + 40 * 10)
    assert 1e12 * alone.dispatch[0] == pytest.approx(7 + 20 * 20)  # 20 pairs from the other node
    assert alone.exposed_copies[0] == 0
    placed = np.full((1, 4, 1), -1, np.int32)
    tokens = np.zeros((1, 4, 4, 1), np.int64)
    placed[0, 3, 0], tokens[0, 2:, 3, 0] = 0, 10
    plan = Plan(home, load, placed, tokens, np.zeros(1, np.int64))
    near = layer_seconds(SIMPLE, plan, 2)
    assert 1e12 * near.compute[0] == pytest.approx(5 + 50 + 20 * 10)
    assert 1e12 * near.dispatch[0] == pytest.approx(7 + 10 * 2)  # each node serves its own
    window = 5 + 50 + 10 * (10 + 1)
    assert 1e12 * near.exposed_copies[0] == pytest.approx(3000 - window)
    assert layer_seconds(SIMPLE, plan, 2, before=plan).exposed_copies[0] == 0
    assert near.total[0] == near.compute[0] + near.dispatch[0] + near.exposed_copies[0]


def test_few_pairs_hide_behind_the_reading_of_weights() -> None:
    load = np.zeros((3, 2, 2), np.int64)
    load[1, 0, 0], load[2, 0, 0] = 5, 6
    compute = 1e12 * home_seconds(SIMPLE, load, contiguous_homes(3, 2, 2), 2).compute
    np.testing.assert_allclose(compute, [5, 5 + 100, 5 + 110])


def test_prices_and_loads_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="cost model: pair is -1"):
        dataclasses.replace(SIMPLE, pair=-1)
    with pytest.raises(InvalidInputError, match="host_copy"):
        dataclasses.replace(SIMPLE, host_copy=2**45)
    load = np.full((1, 1, 2, 2), 2**29)
    problem = StageProblem(
        load,
        contiguous_homes(1, 2, 2),
        np.zeros(1, np.int32),
        skewed_problem(0, 2, 2, 2, 1).topology,
        1,
    )
    with pytest.raises(InvalidInputError, match=r"2\*\*31"):
        dataclasses.replace(problem, cost=SIMPLE)
    with pytest.raises(InvalidInputError, match=r"2\*\*31"):
        home_seconds(SIMPLE, load[0], problem.home, 2)
