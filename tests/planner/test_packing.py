"""Routing-aware packing: each sequence once, within the limits, never behind packing by length."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from foremoe.errors import InvalidInputError
from foremoe.foresight.trace import load_trace
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.packing import (
    AttentionCost,
    PackingProblem,
    packing_cost,
    propose_schedule,
    rank_pairs,
)
from foremoe.planner.packing_lengths import length_packings
from foremoe.planner.packing_reference import Sequence, search
from foremoe.planner.packing_search import search as kernel_search
from foremoe.planner.step_homes import step_homes
from tests.planner.packings import (
    bursty_sequences,
    first_fit_micro_steps,
    packing_problems,
    recount,
)
from tests.planner.recorded import recorded


@settings(max_examples=150, deadline=None)
@given(packing_problems())
def test_every_sequence_is_packed_once_within_the_limits(problem: PackingProblem) -> None:
    packing = propose_schedule(problem)
    packed = packing.micro_steps()
    everything = [sequence for ranks in packed for held in ranks for sequence in held]
    assert sorted(everything) == list(range(len(problem.tokens)))
    for ranks, mini_batch in zip(packed, packing.mini_batch, strict=True):
        assert len(ranks) == problem.ranks
        assert any(ranks)
        for held in ranks:
            assert problem.tokens[held].sum() <= problem.token_budget
            assert len(held) <= problem.max_sequences
            assert (problem.mini_batch[held] == mini_batch).all()
    assert (np.diff(packing.mini_batch) >= 0).all()


@settings(max_examples=150, deadline=None)
@given(packing_problems())
def test_no_more_micro_steps_and_no_more_cost_than_by_length(problem: PackingProblem) -> None:
    packing = propose_schedule(problem)
    for number in np.unique(problem.mini_batch):
        tokens = problem.tokens[problem.mini_batch == number]
        micro_steps = int((packing.mini_batch == number).sum())
        assert micro_steps <= first_fit_micro_steps(tokens, problem)
        assert micro_steps <= first_fit_micro_steps(-np.sort(-tokens), problem)
        if len(tokens) >= micro_steps * problem.ranks:
            steps = np.flatnonzero(packing.mini_batch == number)
            assert all(held for m in steps for held in packing.micro_steps()[m])
    assert packing.bound <= packing.cost <= packing.length_only_cost
    assert packing.cost == recount(problem, packing)


@settings(max_examples=100, deadline=None)
@given(packing_problems(max_sequences=8))
def test_kernel_equals_the_reference(problem: PackingProblem) -> None:
    assert_twins(problem, 150)


def test_kernel_equals_the_reference_on_bursty_sequences() -> None:
    problem = bursty_sequences(1, 24, 4, 3)
    assert_twins(replace(problem, attention=AttentionCost(1.5, 0.01)), 1500)


def assert_twins(problem: PackingProblem, proposals: int) -> None:
    layers = problem.rank_pairs.shape[2]
    attention = problem.attention.pairs(problem.tokens, layers)
    limits = problem.token_budget, problem.max_sequences
    for start in length_packings(problem.tokens, problem.ranks, *limits).values():
        micro_steps = int(start.max()) // problem.ranks + 1
        rows = np.stack([problem.tokens, np.ones_like(attention), attention], axis=1)
        found = kernel_search(
            np.concatenate([rows, np.zeros((1, 3), np.int64)]),
            np.concatenate([problem.rank_pairs, np.zeros((1, problem.ranks, layers), np.uint32)]),
            start,
            micro_steps,
            *limits,
            proposals,
        )
        sequences = [
            Sequence(*counts)
            for counts in zip(
                problem.tokens.tolist(),
                attention.tolist(),
                problem.rank_pairs.tolist(),
                strict=True,
            )
        ]
        assert found.tolist() == search(sequences, start.tolist(), micro_steps, *limits, proposals)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("attention", [AttentionCost(), AttentionCost(2.0, 0.01)])
def test_small_instances_are_packed_as_well_as_can_be(seed: int, attention: AttentionCost) -> None:
    problem = replace(bursty_sequences(seed, 6, 2, 2), attention=attention, max_sequences=2)
    packing = propose_schedule(problem)
    bins = 2 * len(packing.mini_batch)
    work = attention.pairs(problem.tokens, 2)
    optimum = min(
        packing_cost(problem.rank_pairs, work, np.array(placed))
        for placed in product(range(bins), repeat=6)
        if np.bincount(placed, problem.tokens).max() <= problem.token_budget
        and np.bincount(placed).max() <= 2
    )
    assert packing.bound <= optimum == packing.cost


def test_sequences_that_need_the_same_rank_are_kept_apart() -> None:
    """Six for each of two ranks, all of one length."""
    pairs = np.zeros((12, 2, 1), np.uint32)
    pairs[np.arange(12), [0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1]] = 40
    problem = PackingProblem(np.full(12, 10), pairs, np.zeros(12, np.int64), 10)
    packing = propose_schedule(problem)
    assert packing.cost == packing.bound == 6 * 40 < packing.length_only_cost


def test_attention_is_evened_out_over_the_ranks_of_a_micro_step() -> None:
    """Squares count: the two long ones share a micro-step, so that one waits for the other."""
    problem = PackingProblem(
        tokens=np.array([100, 100, 10, 10]),
        rank_pairs=np.ones((4, 2, 1), np.uint32),
        mini_batch=np.zeros(4, np.int64),
        token_budget=100,
        attention=AttentionCost(beta=1.0),
    )
    packing = propose_schedule(problem)
    assert packing.micro_step[0] == packing.micro_step[1] != packing.micro_step[2]


def test_packing_twice_gives_the_same() -> None:
    problem = bursty_sequences(2, 100, 8, 4)
    one, two = propose_schedule(problem), propose_schedule(problem)
    np.testing.assert_array_equal(one.micro_step, two.micro_step)
    np.testing.assert_array_equal(one.rank, two.rank)


def test_pairs_are_counted_where_experts_are_at_home() -> None:
    histograms = np.array([[[1, 2, 4, 8], [1, 2, 4, 8]]], np.uint32)
    home = np.array([[0, 0, 1, 1], [1, 0, 1, 0]], np.int32)
    assert rank_pairs(histograms, home, 2).tolist() == [[[3, 10], [12, 5]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_budget": 9}, "token_budget: sequence 1 has 10 tokens"),
        ({"token_budget": 0}, "token_budget"),
        ({"max_sequences": 0}, "max_sequences"),
        ({"tokens": np.array([5, -1])}, "negative"),
        ({"tokens": np.array([5, 5, 5])}, "rank_pairs: expected uint32"),
        ({"mini_batch": np.zeros(3, np.int64)}, "mini_batch: expected int64"),
        ({"rank_pairs": np.ones((2, 2, 1), np.int64)}, "got int64"),
        ({"rank_pairs": np.ones((2, 2), np.uint32)}, "rank_pairs"),
        ({"rank_pairs": np.ones((2, 0, 1), np.uint32)}, "at least one"),
    ],
)
def test_bad_problems_are_refused(change: dict[str, Any], message: str) -> None:
    good = PackingProblem(
        np.array([5, 10]), np.ones((2, 2, 1), np.uint32), np.zeros(2, np.int64), 10
    )
    with pytest.raises(InvalidInputError, match=message):
        replace(good, **change)


def test_no_sequences_and_too_much_work_are_refused() -> None:
    nothing = np.zeros(0, np.int64)
    with pytest.raises(InvalidInputError, match="at least one sequence"):
        PackingProblem(nothing, np.zeros((0, 2, 1), np.uint32), nothing, 10)
    for bad in ({"alpha": -1.0}, {"beta": float("nan")}, {"beta": float("inf")}):
        with pytest.raises(InvalidInputError, match="attention"):
            AttentionCost(**bad)
    problem = replace(bursty_sequences(0, 4, 2, 1), attention=AttentionCost(beta=1e15))
    with pytest.raises(InvalidInputError, match=r"fewer than 2\*\*53"):
        propose_schedule(problem)
    with pytest.raises(InvalidInputError, match=r"2\*\*32"):
        rank_pairs(np.full((1, 1, 4), 2**31, np.uint32), contiguous_homes(1, 4, 2), 2)


@pytest.mark.traces
def test_recorded_routing_is_packed_better_than_by_length() -> None:
    """One sequence a rank, eight a micro-step; bounds say how much contiguous homes allow."""
    trace = load_trace(recorded("gpt_oss_20b.npz"))
    histograms, ranks = trace.histograms(), 8
    tokens = np.diff(trace.offsets)
    mini_batch = np.zeros(len(tokens), np.int64)
    contiguous = contiguous_homes(trace.layers, trace.num_experts, ranks)
    total = histograms.sum(axis=0, dtype=np.int64)[None]
    for home, least_gain, of_arrival in (
        (contiguous, 0.055, 0.11),
        (step_homes(total, contiguous, ranks, ranks), 0.10, 0.10),
    ):
        pairs = rank_pairs(histograms, home, ranks)
        packing = propose_schedule(PackingProblem(tokens, pairs, mini_batch, 511, 1))
        arrival = packing_cost(pairs, np.zeros_like(tokens), np.arange(len(tokens)))
        assert len(packing.mini_batch) == 63
        assert packing.cost <= (1 - least_gain) * packing.length_only_cost
        assert packing.cost <= (1 - of_arrival) * arrival
