"""Experts change ranks whole, with optimizer state and in place, or not at all."""

import re

import pytest
import torch

from tests.processes import run_ranks
from tests.training import home_moves_workers as workers
from tests.training.home_moves_workers import DEATHS, EXPERTS, LAYERS, REFUSALS, Experts


def merged(results: list[Experts]) -> Experts:
    found = {expert: own for result in results for expert, own in result.items()}
    assert len(found) == sum(map(len, results)) == len(LAYERS) * EXPERTS
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_training_with_moves_gives_every_expert_the_same_bytes(ranks: int) -> None:
    results = run_ranks(workers.train, ranks, ranks)
    for case in results[0]:
        moved = merged([result[case][0] for result in results])
        stayed = merged([result[case][1] for result in results])
        assert moved.keys() == stayed.keys()
        for expert, own in stayed.items():
            assert moved[expert].keys() == own.keys()
            for name, tensor in own.items():
                assert torch.equal(moved[expert][name], tensor), (case, expert, name)


def test_a_step_count_of_its_own_goes_with_the_expert() -> None:
    experts = merged(run_ranks(workers.uneven_steps, 2, 2))
    steps = {name: float(own["down.step"]) for name, own in experts.items()}
    assert steps == {
        f"{layer}/{expert}": expert + 1 for layer in LAYERS for expert in range(EXPERTS)
    }


def test_what_cannot_be_moved_is_refused_by_all_with_nothing_changed() -> None:
    results = run_ranks(workers.refusals, 2, 2)
    assert results[0] == results[1]
    for message, expected in zip(results[0], REFUSALS.values(), strict=True):
        assert re.match(expected, message), message


@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_rank_leaves_all_as_it_was_or_a_torn_model(death: str) -> None:
    results = run_ranks(workers.lose_a_rank, 3, death, killed=frozenset({2}))
    torn = death in ("before it writes", "in the second batch")
    for result in (results[0], results[1]):
        message, unchanged = result
        assert ("the model is torn" in message) == torn
        assert ("restore the last checkpoint on all ranks" in message) == torn
        assert unchanged or torn
