"""Rule 1 while experts change homes: losses, gradients and state are those of a run that stays."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.processes import run_ranks
from tests.training import moving_workers as workers
from tests.training.dense import Case

TOLERANCE = 1e-10


@pytest.mark.parametrize("ranks", [2, 4])
def test_training_with_moves_equals_training_without(ranks: int) -> None:
    case = Case(seed=40 + ranks, ranks=ranks, mini_batches=4)
    moved = run_ranks(workers.train, ranks, case, True)
    stayed = run_ranks(workers.train, ranks, case, False)
    for rank in range(ranks):
        for actual, expected in zip(moved[rank]["outputs"], stayed[rank]["outputs"], strict=True):
            assert torch.allclose(actual, expected, rtol=0, atol=TOLERANCE)
        assert_same(moved[rank]["state"], stayed[rank]["state"])
        assert_same(moved[rank]["gathered"], stayed[rank]["gathered"])
    for mini_batch in range(case.mini_batches):
        assert_same(*(merged(results, mini_batch) for results in (moved, stayed)))


def merged(results: list[dict[str, Any]], mini_batch: int) -> dict[str, Tensor]:
    return {
        name: tensor
        for result in results
        for name, tensor in result["gradients"][mini_batch].items()
    }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(actual[name], tensor, rtol=0, atol=TOLERANCE), name
