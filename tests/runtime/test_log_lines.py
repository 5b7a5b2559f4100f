"""The daemon's log: one line a step, as text or as JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.steps import MICRO_STEPS, attached


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def run_steps(daemon: DaemonProcess) -> None:
    """Three steps: one in order, one degraded, one released before its update is reported."""
    with attached(daemon, "ep0") as group:
        group.run(1)
        group.controller.release_step(1)
        group.upload(2)
        for stage in Stage:
            group.report(2, stage, group.schedule(2, stage), {(1, 1): "no plan in time"})
        group.upload(3)
        group.report(3, Stage.RECOMPUTE, group.schedule(3, Stage.RECOMPUTE))
        group.schedule(3, Stage.UPDATE)
        group.controller.release_step(3)


def test_json_log_has_one_line_a_step_with_its_figures(folder: Path) -> None:
    with DaemonProcess(folder, "--log-format", "json") as daemon:
        run_steps(daemon)
        assert daemon.terminate() == 0
        lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    steps = [line for line in lines if "stages" in line]
    assert [(line["step"], line["ep_group"], line["level"]) for line in steps] == [
        (step, "ep0", "info") for step in (1, 2, 3)
    ]
    by_stage: list[dict[str, Any]] = [
        {stage["stage"]: stage for stage in line["stages"]} for line in steps
    ]
    for stages in by_stage[:2]:
        assert [stage["reported"] for stage in stages.values()] == [MICRO_STEPS] * 2
        assert all(stage["imbalance_before"] > 1 for stage in stages.values())
    assert by_stage[1]["update"]["degraded_reasons"] == {"no plan in time": 1}
    assert [stage["reported"] for stage in by_stage[2].values()] == [MICRO_STEPS, 0]
    warnings = [line for line in lines if line["level"] == "warning"]
    where = [(w["step"], w["stage"], w["micro_step"], w["rank"]) for w in warnings]
    assert where == [(2, "recompute", 1, 1), (2, "update", 1, 1)]
    about_steps = [line for line in lines if "step" in line]
    assert len(about_steps) == len(steps) + len(warnings)


def test_text_log_says_the_same_and_debug_says_more(folder: Path) -> None:
    with DaemonProcess(folder, "--log-level", "debug") as daemon:
        run_steps(daemon)
    log = daemon.log.read_text()
    for step in (1, 2, 3):
        assert log.count(f" step {step} of ep0: recompute {MICRO_STEPS}/{MICRO_STEPS} ") == 1
    assert "2 of 6 micro-steps degraded (no plan in time 2)" in log
    assert log.count(", not measured") == 1
    assert log.count("micro-steps planned in") == 6
