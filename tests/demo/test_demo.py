"""The main job in small, as a user runs it: real daemon, real ranks, and a kill -9."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foremoe.commands.demo import write_html
from foremoe.demo.options import DemoOptions
from foremoe.demo.supervisor import run_demo
from foremoe.report.demo_chapter import demo_plans
from foremoe.timeline.chrome_trace import read_trace
from foremoe.timeline.span import COMPUTE, Span, StageOfRun
from foremoe.vocabulary import DegradedReason, Stage
from tests.report.pages import Page
from tests.report.told import FIGURES

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
    folder = tmp_path_factory.mktemp("demo")
    path, timeline = folder / "report.json", folder / "timeline.json"
    status = folder / "demo.status"
    run_demo(DemoOptions(**SMALL, json=path, timeline=timeline, status=status))
    report: dict[str, Any] = json.loads(path.read_text())
    return {**report, "timeline": timeline, "status": status}


def test_each_step_is_balanced_and_gives_the_same_numbers(undisturbed: dict[str, Any]) -> None:
    assert len(undisturbed["steps"]) == SMALL["steps"]
    assert undisturbed["degraded_micro_steps"].keys() <= {DegradedReason.LATE_COPIES}
    assert undisturbed["largest_gradient"] > 1e-4
    assert undisturbed["largest_gradient_difference"] < 1e-9 * undisturbed["largest_gradient"]
    assert undisturbed["largest_loss_difference"] < 1e-12
    for stage in undisturbed["stages"].values():
        assert stage["imbalance_before"] > 1.15 > 1.1 > stage["imbalance_after"]
        assert stage["host_bytes"] + stage["peer_bytes"] > 0
    assert undisturbed["stages"]["update"]["gradient_bytes"] > 0


def test_the_reports_plans_are_those_of_the_daemon(undisturbed: dict[str, Any]) -> None:
    run = demo_plans(Path("demo"), undisturbed)
    assert run is not None
    measured = undisturbed["steps"][-1]["stages"]["update"]
    assert run.before().mean() == pytest.approx(measured["imbalance_before"], rel=1e-12)
    assert run.after().mean() == pytest.approx(measured["imbalance_after"], rel=1e-12)


def test_the_page_shows_all_of_the_last_step(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    write_html(tmp_path / "demo.html", undisturbed, undisturbed["status"])
    page = Page(tmp_path / "demo.html")
    of_daemon = [f"{figure}-{stage}" for stage in Stage for figure in FIGURES]
    measured = ["demo-imbalance", "demo-seconds", "demo-bytes"]
    assert page.sections() == [*measured, *of_daemon, "planning"]
    assert page.missing() == []
    assert (tmp_path / "demo.html").stat().st_size < 2_000_000
    load = np.array(undisturbed["update_load"])
    traffic = np.array(page.numbers("traffic-update"))[:, 1:]
    assert traffic.sum() == 2 * load.sum()
    np.testing.assert_array_equal(traffic[:, :2].sum(axis=1), load.sum(axis=(0, 1, 3)))
    for stage, figures in undisturbed["stages"].items():
        spans = last_step(undisturbed["timeline"], stage)
        busy = {row[0]: float(row[2]) for row in page.table(f"timeline-{stage}")}
        for track in ("compute", "exposed"):
            recorded = sum(s.end_ns - s.start_ns for s in spans if s.track == track) / 1e6
            assert busy[track] == pytest.approx(recorded, rel=0.01, abs=0.1), (stage, track)
        assert len(page.numbers(f"planning-{stage}")) == figures["micro_steps"]


def last_step(timeline: Path, stage: str) -> list[Span]:
    """What all processes recorded of the last step's balanced stage."""
    trace = read_trace(timeline, json.loads(timeline.read_text()))
    of = StageOfRun("demo", SMALL["steps"] - 1, stage)
    return [span for spans in trace.processes.values() for span in spans if span.of == of]


def test_the_timeline_tells_what_the_report_tells(undisturbed: dict[str, Any]) -> None:
    trace = read_trace(undisturbed["timeline"], json.loads(undisturbed["timeline"].read_text()))
    assert list(trace.processes) == ["daemon", "rank 0", "rank 1"]
    ranks = [trace.processes["rank 0"], trace.processes["rank 1"]]
    spans = [span for rank in ranks for span in rank]
    for stage, figures in undisturbed["stages"].items():
        own = [s for s in spans if s.of and s.of.stage == stage and s.of.balanced]
        for track in ("host", "peer", "gradient"):
            moved = sum(s.nbytes for s in own if s.track.startswith(track))
            assert moved == figures[f"{track}_bytes"] * SMALL["steps"], (stage, track)
        waited = sum(s.end_ns - s.start_ns for s in own if s.track == "exposed") / 1e9
        assert 0 < waited < sum(figures["seconds_balanced"] * SMALL["steps"] for _ in ranks)
    for rank in ranks:
        by_micro_step: dict[Any, list[Span]] = {}
        for span in rank:
            if span.track in COMPUTE:
                by_micro_step.setdefault((span.of, span.micro_step), []).append(span)
        assert len(by_micro_step) == 2 * sum(
            SMALL["steps"] * figures["micro_steps"] for figures in undisturbed["stages"].values()
        )
        for stream in by_micro_step.values():
            assert all(a.end_ns == b.start_ns for a, b in pairwise(stream))
            assert {"compute", "dispatch"} <= {span.track for span in stream}
            forward = [s for s in stream if (s.track, s.name) == ("compute", "forward")]
            backward = [s for s in stream if (s.track, s.name) == ("compute", "backward")]
            of = stream[0].of
            assert of is not None
            assert {s.layer for s in forward} == set(range(DemoOptions().layers))
            assert {s.layer for s in backward} == (
                set(range(DemoOptions().layers)) if of.stage == "update" else set()
            )
    planned = {(s.of, s.micro_step) for s in trace.processes["daemon"]}
    assert planned == {(s.of, s.micro_step) for s in spans if s.of and s.of.balanced}


def test_killing_the_daemon_changes_no_loss(undisturbed: dict[str, Any]) -> None:
    lost_soon = {**SMALL, "plan_wait_seconds": 1.0}
    disturbed = run_demo(DemoOptions(**lost_soon, kill_daemon_at_step=1))
    assert sum(disturbed["degraded_micro_steps"].values()) > 0
    for expected, actual in zip(undisturbed["steps"], disturbed["steps"], strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-9, abs=1e-12)
        assert actual["reward"] == expected["reward"]
