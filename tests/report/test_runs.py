"""Reports on what runs left behind: the demo's JSON, timelines, a daemon; and on what is no run."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from foremoe.cli import main
from foremoe.demo.options import DemoOptions
from foremoe.demo.report import summarise
from foremoe.timeline.chrome_trace import Clock, Trace, write_trace
from foremoe.timeline.span import Span, StageOfRun
from tests.foresight.test_trace import fields, write
from tests.report.pages import Page

SIMULATE = [
    "simulate",
    "--model",
    "mixtral-8x7b",
    "--cluster",
    "h100x4",
    "--tokens-per-rank",
    "256",
]


def demo_report() -> dict[str, Any]:
    """Three steps, summed up by the demo itself."""
    stage = {
        "imbalance_before": 1.5,
        "imbalance_after": 1.01,
        "busiest_tokens_before": 150,
        "busiest_tokens_after": 101,
        "seconds_unbalanced": 3.0,
        "seconds_balanced": 2.0,
        "exposed_seconds": 0.125,
        "host_bytes": 3 << 20,
        "peer_bytes": 2 << 20,
        "gradient_bytes": 1 << 20,
        "micro_steps": 6,
        "degraded": {},
    }
    step = {
        "stages": {"recompute": stage, "update": {**stage, "exposed_seconds": 0.5}},
        "reward": 0.5,
        "loss_difference": 1e-9,
        "gradient_difference": 1e-8,
        "gradient_scale": 0.1,
    }
    return summarise(DemoOptions(), [step] * 3)


def report(run: Path, folder: Path, *options: str) -> Page:
    assert main(["report", str(run), "--out", str(folder / "report.html"), *options]) == 0
    return Page(folder / "report.html")


def test_the_demos_json_becomes_bars_and_lines(tmp_path: Path) -> None:
    load = np.random.default_rng(0).integers(1, 99, (6, 2, 2, 16)).tolist()
    told = {**demo_report(), "update_load": load}
    (tmp_path / "demo.json").write_text(json.dumps(told))
    page = report(tmp_path / "demo.json", tmp_path)
    measured = ["demo-imbalance", "demo-seconds", "demo-bytes"]
    assert page.sections() == [*measured, "imbalance", "heatmap", "frontier", "traffic"]
    assert sum(row[1] + row[2] for row in page.numbers("traffic")) == np.sum(load)
    (tmp_path / "demo.json").write_text(json.dumps(demo_report()))
    page = report(tmp_path / "demo.json", tmp_path)
    assert page.sections() == measured
    assert page.facts()["speedup"] == 1.5
    assert page.facts()["imbalance-after"] == 1.01
    assert page.numbers("demo-seconds") == [[s, 3, 2, 0.125, 3, 2, 0.5] for s in range(3)]
    assert page.marks("demo-imbalance-update-after") == 3
    assert "9 MiB" not in page.finding("demo-bytes")
    assert "18 MiB of weights came by the host path" in page.finding("demo-bytes")


def test_a_timeline_is_read_back(tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    arguments = [
        "--workload",
        "W2_hot_rank",
        "--target",
        "1.005",
        "--policies",
        "foremoe",
        "--timeline",
        str(timeline),
    ]
    assert main([*SIMULATE, *arguments]) == 0
    page = report(tmp_path, tmp_path)  # the folder
    assert page.sections() == ["timeline-recompute", "timeline-update"]
    events = json.loads(timeline.read_text())["traceEvents"]
    for process, slug in enumerate(page.sections()):
        busy: dict[str, float] = {}
        for event in events:
            if event["ph"] == "X" and event["pid"] == process:
                kind = event["cat"].split(" into ")[0]
                busy[kind] = busy.get(kind, 0.0) + event["dur"] / 1e3
        assert {row[0]: float(row[2]) for row in page.table(slug)} == pytest.approx(busy)
        assert {"compute", "dispatch", "peer"} <= busy.keys()
        for kind in busy:
            assert page.by_id(f"{slug}-whole-{kind}") is not None


def recorded_run(folder: Path) -> None:
    """One step, balanced and not, of two ranks and their daemon, each with a clock of its own."""
    begin, ms = 5_000_000_000, 1_000_000
    balanced, unbalanced = (StageOfRun("ep0", 3, "update", way) for way in (True, False))

    def span(track: str, name: str, at: int, length: int, micro_step: int = 0) -> Span:
        return Span(track, name, begin + at * ms, begin + (at + length) * ms, micro_step, 1, 7)

    for rank in range(2):
        spans = [
            span("compute", "forward", 0, 400)._replace(of=unbalanced),
            span("compute", "forward", 500, 90)._replace(of=balanced),
            span("exposed", "copies", 590, 10)._replace(of=balanced),
            span("compute", "forward", 600, 95, 1)._replace(of=balanced),
            span("exposed", "gradients", 695, 5 * rank + 1, 1)._replace(of=balanced),
            span("host", "expert 3", 510, 20)._replace(of=balanced),
        ]
        clock = Clock("machine", 10**18 + rank)  # read at other moments
        write_trace(folder / f"ep0-rank-{rank}.json", Trace({f"rank {rank}": spans}, clock))
    plans = [
        span("planning", f"plan of micro-step {m}", 490 + 2 * m, 2, m)._replace(of=balanced)
        for m in range(2)
    ]
    write_trace(folder / "daemon-1.json", Trace({"daemon": plans}, Clock("machine", 10**18)))


def test_a_folder_of_timelines_is_one_recorded_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    recorded_run(run)
    record = tmp_path / "record.json"
    written = ["--timeline", str(tmp_path / "merged.json"), "--json", str(record)]
    page = report(run, tmp_path, *written)
    assert page.sections() == ["timeline-update", "planning-update"]
    assert page.finding("timeline-update") == (
        "Update of step 3: 6.40% of the time of a rank is exposed, "
        "10.0 ms for copies and 3.5 ms for gradients"
    )
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in page.table("timeline-update")}
    assert rows == {
        "planning": [2, 4],
        "host": [2, 40],
        "compute": [4, 370],
        "exposed": [4, pytest.approx(27)],
    }
    (chapter,) = json.loads(record.read_text())
    assert {row[0]: row[1:] for row in chapter["charts"]["timeline-update"]["rows"]} == rows
    for name in ("whole", "closer"):
        red = page.by_id(f"timeline-update-{name}-exposed")
        assert "var(--red)" in ElementTree.tostring(red, encoding="unicode")
    assert page.by_id("timeline-update-whole-planning") is not None
    assert [row[2:] for row in page.numbers("planning-update")] == [[2, 10], [4, 110]]
    again = report(tmp_path / "merged.json", tmp_path)
    assert again.table("timeline-update") == page.table("timeline-update")
    files = ["--timeline", str(tmp_path / "none.json"), "--out", str(tmp_path / "none.html")]
    assert main(["report", str(tmp_path / "merged.json"), *files]) == 2
    assert not list(tmp_path.glob("none.*"))


def test_a_large_timeline_stays_small(tmp_path: Path) -> None:
    where = {"micro_step": 0, "layer": 0}
    one = {"ph": "X", "pid": 0, "name": "a", "dur": 1, "args": where}
    spans = [{**one, "cat": "compute", "ts": 8 * at} for at in range(700)]
    spans += [{**span, "cat": f"peer into rank {rank}"} for span in spans for rank in range(32)]
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": spans}))
    page = report(tmp_path / "t.json", tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert len(list(page.section("timeline-process-0").iter("image"))) == 2
    assert page.table("timeline-process-0")[0][:2] == ["peer", str(700 * 32)]


def test_a_name_in_a_file_stays_a_name(tmp_path: Path) -> None:
    where = {"micro_step": 0, "layer": 0}
    name = {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "<script>/../$x^2$"}}
    span = {"ph": "X", "pid": 0, "name": "a", "cat": "compute", "ts": 0, "dur": 5, "args": where}
    copy = {**span, "cat": "<b>$x$</b> into rank 1"}
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": [name, span, copy]}))
    page = report(tmp_path / "t.json", tmp_path, "--figures", str(tmp_path / "figures"))
    assert not {"script", "b"} & {element.tag for element in page.root.iter()}
    assert "<script>/../$x^2$" in page.finding("timeline-script-x-2").lower()
    assert "<b>$x$</b>" in [element.text for element in page.root.iter("text")]
    assert {f.name for f in (tmp_path / "figures").iterdir()} == {
        f"timeline-script-x-2.{kind}" for kind in ("png", "svg")
    }


def test_no_daemon_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--socket", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def event(**changed: Any) -> dict[str, Any]:
    return {
        "traceEvents": [
            {
                "ph": "X",
                "pid": 0,
                "name": "a",
                "cat": "compute",
                "ts": 0.0,
                "dur": 1.0,
                "args": {"micro_step": 0, "layer": 0},
                **changed,
            }
        ]
    }


def without(content: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ([], "is neither of"),
        (3, "is neither of"),
        ({"policies": []}, "is neither of"),
        ({"policy": "foremoe"}, "imbalance_before is missing"),
        ({"stages": {}}, "stages.recompute is missing"),
        (without(demo_report(), "steps"), "steps is missing"),
        ({**demo_report(), "update_load": [[1]]}, "update_load is no load of a stage"),
        ({**demo_report(), "update_load": "much"}, "update_load is no load of a stage"),
        ({**demo_report(), "update_load": [[[[3, 4, 5]] * 2] * 2] * 6}, "update_load"),
        ({**demo_report(), "steps": []}, "steps is no list of objects"),
        ({**demo_report(), "speedup": float("nan")}, "speedup is no number"),
        ({**demo_report(), "options": 3}, "options is no JSON object"),
        ({"traceEvents": []}, "no span of a micro-step"),
        ({"traceEvents": 3}, "no Chrome trace"),
        (event(ts="soon"), "no Chrome trace"),
        (event(dur=-1.0), "no Chrome trace"),
        (event(dur=float("inf")), "no Chrome trace"),
        (event(cat="peer into rank 0"), "has no track"),
        (event(args={}), "no span of a micro-step"),
    ],
)
def test_json_that_is_no_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    run = tmp_path / "run.json"
    run.write_text(content if isinstance(content, str) else json.dumps(content))
    out = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"foremoe report: {run}: ")
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "cannot be read"),
        (["none.npz"], "cannot be read"),
        (["."], "holds no .json"),
        (["trace.npz"], "expected the fields home"),
        (["unsound.npz"], "micro-step 0: every token once: home is no rank"),
        (["empty.npz"], "holds no plan"),
        (["plans.npz", "--nodes", "3"], "cannot be shared evenly by 3 nodes"),
        (["plans.npz", "--model", "olmoe-1b-7b"], "has 64 experts a layer, the plans have 8"),
        (["plans.npz", "--model", "mixtral"], "did you mean 'mixtral-8x7b'?"),
        (["plans.npz", "--stage", "update"], "need --model"),
        (["plans.npz", "--out", "no/r.html"], "cannot be written"),
        (["plans.npz", "--figures", "plans.npz"], "cannot be made"),
    ],
)
def test_bad_arguments_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments != ["."]:
        trace = write(Path("trace.npz"), fields())
        assert main(["plan", str(trace), "--ranks", "2", "--plans", "plans.npz"]) == 0
        plans = dict(np.load("plans.npz"))
        write(Path("unsound.npz"), {**plans, "home": plans["home"] + 7})
        write(Path("empty.npz"), {k: v if k == "home" else v[:0] for k, v in plans.items()})
    capsys.readouterr()
    assert main(["report", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_demo_checks_where_its_page_goes_before_it_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", "--html", "/nowhere/at/all.html"]) == 2
    assert "--html: cannot write /nowhere/at/all.html" in capsys.readouterr().err
