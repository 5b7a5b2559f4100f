"""Rule 1 while experts change homes: losses, gradients and state are those of a run that stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foremoe.planner.step_homes import step_homes
from tests.processes import run_ranks
from tests.runtime.daemon_process import DaemonProcess
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


def test_ranks_move_experts_to_where_the_daemon_plans_them(tmp_path: Path) -> None:
    case = Case(seed=60, ranks=2, mini_batches=4)
    results = {}
    for moving in (True, False):
        folder = tmp_path / str(moving)
        folder.mkdir(mode=0o700)
        with DaemonProcess(folder) as daemon:
            results[moving] = run_ranks(
                workers.follow_the_daemon, 2, case, folder, daemon.process.pid, moving
            )
    for moved, stayed in zip(results[True], results[False], strict=True):
        assert all(moved["balanced"])
        assert all(stayed["balanced"])
        for actual, expected in zip(moved["outputs"], stayed["outputs"], strict=True):
            assert torch.allclose(actual, expected, rtol=0, atol=TOLERANCE)
        assert_same(moved["state"], stayed["state"])
        assert all(np.array_equal(home, stayed["homes"][0]) for home in stayed["homes"])
    contiguous, homes = results[False][0]["homes"][0], results[True][0]["homes"]
    for step, home in enumerate(homes):
        assert np.array_equal(home, results[True][1]["homes"][step])
        start = homes[step - 1] if step else contiguous
        expected = step_homes(step_tokens(case, step), start, 2, 2)
        assert np.array_equal(home, expected)
        assert not np.array_equal(home, start)


def test_a_failed_session_leaves_experts_where_they_are_or_brings_them_back() -> None:
    for outputs in run_ranks(workers.attach_again, 2, Case(seed=62, ranks=2)):
        assert len(outputs) == 3
        for output in outputs[1:]:
            assert torch.allclose(output, outputs[0], rtol=0, atol=TOLERANCE)


def test_homes_that_cannot_move_stay() -> None:
    run_ranks(workers.homes_that_stay, 2, Case(seed=61, ranks=2))


def step_tokens(case: Case, step: int) -> NDArray[np.int64]:
    """Pairs by micro-step, layer and expert."""
    tokens = np.zeros((case.micro_steps, case.layers, case.experts), np.int64)
    for index in range(case.micro_steps):
        for rank in range(case.ranks):
            routing = case.routing(rank, step * case.micro_steps + index)
            for layer in range(case.layers):
                tokens[index, layer] += np.bincount(routing[:, layer].ravel(), minlength=8)
    return tokens


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
