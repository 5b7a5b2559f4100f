"""The main job in small, as a user runs it: real daemon, real ranks, and a kill -9."""

import json
from typing import Any

import pytest

from foremoe.demo.options import DemoOptions
from foremoe.demo.supervisor import run_demo

SMALL: dict[str, Any] = {
    "dtype": "float64",
    "steps": 3,
    "warmup_steps": 4,
    "hidden_size": 32,
    "expert_size": 32,
    "prompts": 4,
    "samples_per_prompt": 6,
    "plan_wait_seconds": 60.0,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("demo") / "report.json"
    run_demo(DemoOptions(**SMALL, json=path))
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def test_each_step_is_balanced_and_gives_the_same_numbers(undisturbed: dict[str, Any]) -> None:
    assert len(undisturbed["steps"]) == SMALL["steps"]
    assert undisturbed["degraded_micro_steps"] == {}
    assert undisturbed["largest_gradient"] > 1e-4
    assert undisturbed["largest_gradient_difference"] < 1e-9 * undisturbed["largest_gradient"]
    assert undisturbed["largest_loss_difference"] < 1e-12
    for stage in undisturbed["stages"].values():
        assert stage["imbalance_before"] > 1.15 > 1.1 > stage["imbalance_after"]
        assert stage["host_bytes"] + stage["peer_bytes"] > 0
    assert undisturbed["stages"]["update"]["gradient_bytes"] > 0


def test_killing_the_daemon_changes_no_loss(undisturbed: dict[str, Any]) -> None:
    lost_soon = {**SMALL, "plan_wait_seconds": 1.0}
    disturbed = run_demo(DemoOptions(**lost_soon, kill_daemon_at_step=1))
    assert sum(disturbed["degraded_micro_steps"].values()) > 0
    for expected, actual in zip(undisturbed["steps"], disturbed["steps"], strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-9, abs=1e-12)
        assert actual["reward"] == expected["reward"]
