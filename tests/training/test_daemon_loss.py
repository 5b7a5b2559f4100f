"""The runtime is soft state: killed at any instant, training goes on with the same numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import run_ranks
from tests.runtime.daemon_process import DaemonProcess
from tests.training.daemon_workers import MINI_BATCHES_PER_STEP, STEPS, train_through_daemon_loss
from tests.training.dense import Case
from tests.training.test_same_result import assert_same

LOST = ("runtime lost", "no plan in time", "another rank holds no such plan")


@pytest.mark.parametrize("ranks", [2, 4])
def test_training_survives_kill_9_and_is_balanced_again_after_a_restart(
    ranks: int, tmp_path: Path
) -> None:
    case = Case(seed=20 + ranks, ranks=ranks, mini_batches=MINI_BATCHES_PER_STEP * len(STEPS))
    with DaemonProcess(tmp_path) as daemon:
        results = run_ranks(train_through_daemon_loss, ranks, case, tmp_path, daemon.process.pid)
    assert_same(case, results)
    records = results[0]["records"]
    assert all(record.balanced for record in records["balanced"])
    assert all(record.degraded_reason == "runtime lost" for record in records["no daemon"])
    assert all(record.balanced for record in records["restarted"])
    lost = records["killed in the middle"]
    assert lost[0].balanced  # what had arrived is still used; the rest runs without, by name
    assert all(r.balanced or r.degraded_reason in LOST for r in lost)
    check_log(results[0]["log"], case)
    for step, name in enumerate(STEPS):
        if name in ("balanced", "restarted"):
            tokens = [[r.computed_tokens for r in result["records"][name]] for result in results]
            mean = np.mean(tokens, axis=0).sum()
            assert np.max(tokens, axis=0).sum() < 1.05 * mean
            assert busiest_at_home(case, step) > 1.1 * mean


def check_log(log: list[tuple[str, dict[str, Any]]], case: Case) -> None:
    """One line for each change, with where it was as fields."""
    lines = [(line, fields) for line, fields in log if "copies" not in line]
    degraded, last = [line for line, _ in lines[:-1]], lines[-1]
    assert any(line.startswith("degraded: no plans, runtime lost: from step ") for line in degraded)
    assert len(degraded) <= len(LOST) * case.micro_steps
    assert last[0] == "balanced again: from step 3 update micro-step 0 on"
    assert last[1] == {"step": 3, "stage": "update", "micro_step": 0}


def busiest_at_home(case: Case, step: int) -> int:
    """Sum over the step's micro-steps and layers of the busiest rank's pairs without replicas."""
    micro_steps = MINI_BATCHES_PER_STEP * case.micro_steps
    total = 0
    for index in range(step * micro_steps, (step + 1) * micro_steps):
        routing = np.concatenate([case.actual_routing(rank, index) for rank in range(case.ranks)])
        homes = routing // (case.experts // case.ranks)
        for layer in range(case.layers):
            total += int(np.bincount(homes[:, layer].ravel()).max())
    return total
