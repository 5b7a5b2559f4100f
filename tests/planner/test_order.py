"""The order of micro-steps: alike ones in a row, within their mini-batch."""

import numpy as np
import pytest

from foremoe.commands.plan import stage_load
from foremoe.errors import InvalidInputError
from foremoe.foresight.trace import load_trace
from foremoe.planner.cost import new_replicas
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.order import MOST_MICRO_STEPS, SHARES, compared_layers, similar_order
from foremoe.planner.over_time import resident
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.reference import short_path
from tests.planner.recorded import recorded


@pytest.mark.parametrize("largest", [3, 60, 2**40])
def test_the_kernel_equals_the_reference(largest: int) -> None:
    generator = np.random.default_rng(largest)
    for micro_steps in range(1, 12):
        tokens = generator.integers(0, largest, (micro_steps, 2, 5))
        order = similar_order(tokens, np.zeros(micro_steps, np.int32))
        assert order.tolist() == short_path(tokens.tolist())


def test_what_drifts_is_found_again() -> None:
    """Points on a line, shuffled: the shortest path is the line, from either end."""
    share = np.arange(40)[:, None, None] * [[[1, -1]]] + [[[10, 50]]]
    shuffled = np.random.default_rng(0).permutation(40)
    order = similar_order(share[shuffled], np.zeros(40, np.int32))
    line = shuffled[order].tolist()
    assert line in (list(range(40)), list(range(39, -1, -1)))


def test_micro_steps_stay_in_their_mini_batch() -> None:
    tokens = np.random.default_rng(1).integers(0, 9, (12, 1, 4))
    mini_batch = np.repeat([0, 1, 5], [5, 1, 6]).astype(np.int32)
    order = similar_order(tokens, mini_batch)
    assert sorted(order.tolist()) == list(range(12))
    assert mini_batch[order].tolist() == mini_batch.tolist()
    assert order.tolist() != list(range(12))


def test_a_mini_batch_that_is_too_long_keeps_its_order() -> None:
    tokens = np.random.default_rng(2).integers(0, 9, (MOST_MICRO_STEPS + 1, 1, 2))
    order = similar_order(tokens, np.zeros(len(tokens), np.int32))
    assert order.tolist() == list(range(len(tokens)))


@pytest.mark.parametrize(("layers", "experts"), [(1, 8), (48, 128), (61, 256), (3, 3 * SHARES)])
def test_few_layers_are_compared(layers: int, experts: int) -> None:
    rows = compared_layers(layers, experts)
    assert 0 in rows
    assert rows.max() < layers
    assert (len(rows) - 1) * experts < SHARES


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"expert_tokens: expected .* got \[3, 2\]"):
        similar_order(np.zeros((3, 2), np.int64), np.zeros(3, np.int32))


def test_recorded_routing_needs_fewer_copies_with_one_slot() -> None:
    load = stage_load(load_trace(recorded("gpt_oss_20b.npz")).histograms()[:160, :4], 8, 8)
    order = similar_order(load.sum(axis=2), np.zeros(len(load), np.int32))
    assert _copies(load[order]) < 0.85 * _copies(load)


def _copies(load: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
    home = contiguous_homes(load.shape[1], load.shape[3], 8)
    mini_batch = np.zeros(len(load), np.int32)
    plans = resident(StageProblem(load, home, mini_batch, Topology(8, 8), 1, 1.02))
    copies, before = 0, None
    for plan in plans:
        copies += int(new_replicas(plan.replica_expert, before).sum())
        before = plan.replica_expert
    return copies
