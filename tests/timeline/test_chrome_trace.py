"""Chrome traces: processes of one run on one clock, streams that overlap on tracks of their own."""

import json
from pathlib import Path

import pytest

from foremoe.errors import InvalidInputError
from foremoe.timeline.chrome_trace import Clock, Trace, merged, recorded_traces, write_trace
from foremoe.timeline.span import Span

HOUR_NS = 3600 * 10**9


def span(track: str, start_ns: int, end_ns: int, name: str = "work") -> Span:
    return Span(track, name, start_ns, end_ns, 0, -1)


def test_one_machine_keeps_its_clock_and_others_follow_wall_time() -> None:
    here = [
        Trace({"rank 1": [span("compute", 1500, 1700)]}, Clock("a", HOUR_NS)),
        Trace({"rank 0": [span("compute", 1000, 1200)]}, Clock("a", HOUR_NS + 77)),
    ]
    there = Trace({"rank 2": [span("compute", 5, 25)]}, Clock("b", HOUR_NS + 1200))
    found = merged([*here, there]).processes
    assert list(found) == ["rank 0", "rank 1", "rank 2"]
    starts = {name: spans[0].start_ns for name, spans in found.items()}
    assert starts == {"rank 0": 0, "rank 1": 500, "rank 2": 205}
    assert found["rank 2"][0].end_ns == 225


def test_spans_of_a_track_never_overlap(tmp_path: Path) -> None:
    spans = [span("planning", 0, 100), span("planning", 50, 150), span("planning", 100, 120)]
    spans += [span("dispatch", 0, 10), span("exposed", 10, 20), span("compute", 20, 30)]
    write_trace(tmp_path / "t.json", Trace({"daemon": spans}))
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    where: dict[str, list[tuple[int, int]]] = {}
    for event in events:
        if event["ph"] == "X":
            box = (round(1e3 * event["ts"]), round(1e3 * (event["ts"] + event["dur"])))
            where.setdefault(tracks[event["tid"]], []).append(box)
    assert where == {
        "planning": [(0, 100), (100, 120)],
        "planning (2)": [(50, 150)],
        "compute": [(0, 10), (10, 20), (20, 30)],
    }


def test_simulated_and_other_files_are_not_taken_for_recorded_ones(tmp_path: Path) -> None:
    write_trace(tmp_path / "simulated.json", Trace({"update": [span("compute", 0, 5)]}))
    (tmp_path / "figures.json").write_text("[]")
    (tmp_path / "plans.npz").write_bytes(b"")
    assert recorded_traces(sorted(tmp_path.iterdir())) == {}
    (tmp_path / "torn.json").write_text('{"traceEvents": [')
    with pytest.raises(InvalidInputError, match="cannot be read as JSON"):
        recorded_traces(sorted(tmp_path.iterdir()))


def test_a_clock_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_trace(path, Trace({"rank 0": [span("compute", 0, 5)]}, Clock("a", 1)))
    path.write_text(path.read_text().replace('"ahead_ns": 1', '"ahead_ns": "soon"'))
    with pytest.raises(InvalidInputError, match="no Chrome trace of foremoe"):
        recorded_traces([path])
