"""Traffic counts every pair once, from the rank it is of to the rank that computes it."""

import numpy as np

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.plan import home_tokens
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.traffic import stage_traffic

LAYERS, RANKS, EXPERTS = 3, 4, 8


def test_rows_are_what_ranks_send_and_columns_what_they_compute() -> None:
    random = np.random.default_rng(0)
    load = random.integers(0, 99, (5, LAYERS, RANKS, EXPERTS)) * random.integers(
        1, 9, (5, 1, 1, EXPERTS)
    )
    home = random.permuted(contiguous_homes(LAYERS, EXPERTS, RANKS), axis=1)
    problem = StageProblem(load, home, np.zeros(5, np.int32), Topology(RANKS, RANKS), 2)
    plans = list(POLICIES["foremoe"](problem))
    assert sum(plan.replicas() for plan in plans) > 0
    before, after = stage_traffic(plans)
    sent = load.sum(axis=(0, 1, 3))
    assert np.array_equal(before.sum(axis=1), sent)
    assert np.array_equal(after.sum(axis=1), sent)
    assert np.array_equal(before.sum(axis=0), sum(home_tokens(one, home).sum(0) for one in load))
    assert np.array_equal(after.sum(axis=0), sum(plan.rank_tokens().sum(axis=0) for plan in plans))
    contiguous = contiguous_homes(LAYERS, EXPERTS, RANKS)
    elsewhere, same = stage_traffic(plans, contiguous)
    assert np.array_equal(same, after)
    expected = sum(home_tokens(one, contiguous).sum(axis=0) for one in load)
    assert np.array_equal(elsewhere.sum(axis=0), expected)
