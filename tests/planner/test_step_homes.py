"""Homes for a step: even loads in every micro-step, few moves, the same on every machine."""

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import home_tokens
from foremoe.planner.problem import Topology, check_homes
from foremoe.planner.reference import exchange_homes
from foremoe.planner.step_homes import step_homes


def bursty(seed: int, micro_steps: int, layers: int, experts: int) -> NDArray[np.int64]:
    """A stable skew, with a burst of correlated experts in every micro-step: ``[M, L, E]``."""
    generator = np.random.default_rng(seed)
    heat = generator.dirichlet(np.full(experts, 0.7), layers)
    share = generator.gamma(20 * heat, 1.0, (micro_steps, layers, experts)) + 1e-9
    return np.floor(4000 * share / share.sum(axis=2, keepdims=True)).astype(np.int64)


def spread(expert_tokens: NDArray[np.int64], home: NDArray[np.int32]) -> float:
    """Mean imbalance over micro-steps and layers without replicas."""
    ranks = int(home.max()) + 1
    load = np.zeros((*expert_tokens.shape[:2], ranks, expert_tokens.shape[2]), np.int64)
    load[:, :, 0] = expert_tokens
    return float(np.mean([imbalance(home_tokens(one, home)) for one in load]))


@pytest.mark.parametrize(("ranks", "ranks_per_node"), [(4, 4), (4, 2), (8, 2)])
@pytest.mark.parametrize("least_gain", [0.0, 0.01])
def test_the_kernel_equals_the_reference(
    ranks: int, ranks_per_node: int, least_gain: float
) -> None:
    loads = bursty(1, 6, 2, 16)
    home = contiguous_homes(2, 16, ranks)
    improved = step_homes(loads, home, ranks, ranks_per_node, least_gain)
    for layer in range(2):
        expected = exchange_homes(
            loads[:, layer].tolist(),
            home[layer].tolist(),
            Topology(ranks, ranks_per_node),
            least_gain,
        )
        assert improved[layer].tolist() == expected


def test_every_rank_keeps_its_number_of_experts_and_the_input_stays() -> None:
    home = contiguous_homes(3, 32, 8)
    improved = step_homes(bursty(2, 10, 3, 32), home, 8, 4)
    check_homes(improved, 8)
    assert np.any(improved != home)
    np.testing.assert_array_equal(home, contiguous_homes(3, 32, 8))


def test_micro_steps_become_more_even_than_by_the_steps_total_alone() -> None:
    """Experts 0, 1 and 2, 3 peak together; by their totals all experts look alike."""
    loads = np.zeros((2, 1, 4), np.int64)
    loads[0, 0] = [100, 100, 0, 0]
    loads[1, 0] = [0, 0, 100, 100]
    home = contiguous_homes(1, 4, 2)
    assert spread(loads, home) == 2.0
    assert spread(loads, step_homes(loads, home, 2, 2)) == 1.0


def test_a_higher_least_gain_moves_fewer_experts() -> None:
    loads, home = bursty(3, 20, 2, 64), contiguous_homes(2, 64, 8)
    moved = [
        int(np.count_nonzero(step_homes(loads, home, 8, 8, gain) != home))
        for gain in (0.0, 0.001, 0.01, 100.0)
    ]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[-2] > moved[-1] == 0


def test_nodes_are_evened_out_too() -> None:
    """Ranks cannot be even (one expert each), nodes can: hot experts go to different nodes."""
    loads = np.array([[[90, 90, 10, 10]]], np.int64)
    home = step_homes(loads, contiguous_homes(1, 4, 4), 4, 2)
    assert home[0, 0] // 2 != home[0, 1] // 2


def test_large_loads_do_not_overflow() -> None:
    loads = bursty(4, 5, 1, 16)
    home = contiguous_homes(1, 16, 4)
    np.testing.assert_array_equal(
        step_homes(loads * 2**38, home, 4, 4), step_homes(loads, home, 4, 4)
    )


def test_no_tokens_move_nothing() -> None:
    home = contiguous_homes(2, 8, 4)
    np.testing.assert_array_equal(step_homes(np.zeros((3, 2, 8), np.int64), home, 4, 4), home)


def test_wrong_shapes_and_negative_gains_are_refused() -> None:
    home = contiguous_homes(2, 8, 4)
    with pytest.raises(InvalidInputError, match="expert_tokens"):
        step_homes(np.zeros((3, 1, 8), np.int64), home, 4, 4)
    with pytest.raises(InvalidInputError, match="least_gain"):
        step_homes(np.zeros((3, 2, 8), np.int64), home, 4, 4, -1.0)
