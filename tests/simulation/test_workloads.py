"""Named workloads: counts of real tokens, reproducible, each with the imbalance it is named for."""

import numpy as np
import pytest

from foremoe.errors import InvalidInputError
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import home_tokens
from foremoe.simulation.workloads import (
    BURST_PERIOD,
    WORKLOADS,
    Shape,
    heat_load,
    micro_step_load,
)

SHAPE = Shape(layers=2, experts=64, top_k=8, ranks=8, tokens=2048)
HOME = contiguous_homes(2, 64, 8)


def by_rank(name: str, seed: int = 0, micro_step: int = 0) -> float:
    load = micro_step_load(name, SHAPE, seed, micro_step)
    return float(imbalance(home_tokens(load, HOME)).mean())


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_token_meets_top_k_different_experts(name: str) -> None:
    load = micro_step_load(name, SHAPE, 3, 1)
    tokens = load.sum(axis=2) / SHAPE.top_k
    assert load.shape == (2, 8, 64)
    assert (load >= 0).all()
    assert np.array_equal(tokens, np.rint(tokens))
    assert (load.max(axis=2) <= tokens).all()
    assert np.array_equal(tokens[0], tokens[1])
    assert abs(tokens[0].sum() - 8 * 2048) <= 8


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_seed_and_micro_step_say_it_all(name: str) -> None:
    load = micro_step_load(name, SHAPE, 3, 1)
    assert np.array_equal(load, micro_step_load(name, SHAPE, 3, 1))
    if name != "W0_balanced":
        assert not np.array_equal(load, micro_step_load(name, SHAPE, 4, 1))
        assert not np.array_equal(load, micro_step_load(name, SHAPE, 3, 2))


def test_balanced_is_balanced_to_one_pair() -> None:
    load = micro_step_load("W0_balanced", Shape(1, 48, 5, 4, 1001), 0, 0)
    totals = load.sum(axis=1)
    assert totals.max() - totals.min() <= 1


def test_same_heat_is_worse_on_one_rank_than_spread() -> None:
    hot, spread = by_rank("W2_hot_rank"), by_rank("W3_spread_hot_experts")
    assert hot > 3.0
    assert spread < 1.1
    assert spread < by_rank("W1_hot_expert_set") < hot


def test_ragged_sources_leave_experts_even() -> None:
    load = micro_step_load("W4_source_ragged", SHAPE, 0, 0)
    sources = load.sum(axis=(0, 2))
    assert sources.max() > 1.5 * sources.mean()
    assert by_rank("W4_source_ragged") < 1.1


def test_a_rank_without_tokens() -> None:
    tokens = home_tokens(micro_step_load("W5_zero_expert_rank", SHAPE, 0, 0), HOME)
    assert (tokens[:, -1] == 0).all()
    assert (tokens[:, :-1] > 0).all()


def test_hot_spot_rotates_and_bursts_pass() -> None:
    def busiest(micro_step: int) -> int:
        load = micro_step_load("W6_rotating_hotspot", SHAPE, 0, micro_step)
        return int(home_tokens(load, HOME)[0].argmax())

    assert [busiest(m) for m in range(4)] == [0, 1, 2, 3]
    found = [by_rank("W7_burst", micro_step=m) > 2.0 for m in range(2 * BURST_PERIOD)]
    assert found == 2 * ([False] * (BURST_PERIOD - 1) + [True])


def test_recorded_heat_shows_and_more_sequences_even_it_out() -> None:
    heat = np.ones((1, 64))
    heat[0, :8] = 4.0
    spread = []
    for sequences in (1, 16):
        shape = Shape(2, 64, 8, 8, 2048, sequences)
        load = np.stack([heat_load(heat, shape, 0, m) for m in range(8)])
        assert (load.sum(axis=3) == 8 * 2048).all()
        assert np.array_equal(load[3], heat_load(heat, shape, 0, 3))
        experts = load.sum(axis=(0, 1, 2))
        assert experts[:8].mean() / experts[8:].mean() == pytest.approx(4.0, rel=0.2)
        spread.append(float(load[..., 20].std()))
    assert spread[1] < 0.5 * spread[0]


def test_a_name_or_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="choose one of W0_balanced"):
        micro_step_load("W9", SHAPE, 0, 0)
    with pytest.raises(InvalidInputError, match="top 9 of 8 experts"):
        Shape(layers=1, experts=8, top_k=9, ranks=2, tokens=4)
    with pytest.raises(InvalidInputError, match="4 tokens of a rank cannot be 5 sequences"):
        Shape(layers=1, experts=8, top_k=2, ranks=2, tokens=4, sequences=5)
    with pytest.raises(InvalidInputError, match="64 experts"):
        heat_load(np.ones((2, 32)), SHAPE, 0, 0)
