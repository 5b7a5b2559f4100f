"""``foremoe simulate`` as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest

from foremoe.cli import main

SMALL = ["simulate", "--model", "mixtral-8x7b", "--cluster", "h100x4", "--tokens-per-rank", "512"]


def test_table_record_and_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, timeline = tmp_path / "record.json", tmp_path / "timeline.json"
    arguments = ["--workload", "W2", "--policies", "foremoe"]
    assert main([*SMALL, *arguments, "--json", str(record), "--timeline", str(timeline)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(record.read_text())
    assert found["routing"] == "W2_hot_rank"
    assert [p["name"] for p in found["policies"]] == ["unbalanced", "foremoe", "force-balanced"]
    for policy in found["policies"]:
        assert f"{policy['speedup']:.3f}x" in printed
    assert found["policies"][1]["speedup"] > 1.0
    events = json.loads(timeline.read_text())["traceEvents"]
    tracks = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert "compute" in tracks
    assert any(track.startswith("peer into rank ") for track in tracks)
    assert {"compute", "dispatch", "other"} <= {e["cat"] for e in events if e["ph"] == "X"}
    last = max(e["ts"] + e["dur"] for e in events if e["ph"] == "X" and e["pid"] == 1) / 1e6
    assert last == pytest.approx(found["policies"][1]["seconds"]["update"], rel=0.01)


def test_recorded_heat_sets_what_is_drawn(tmp_path: Path) -> None:
    speedups = {}
    for name, hot in (("even", 1.0), ("skewed", 20.0)):
        heat, record = tmp_path / f"{name}.npz", tmp_path / f"{name}.json"
        np.savez(heat, tokens=np.array([[hot, hot, 1, 1, 1, 1, 1, 1]]))
        short = ["--mini-batches", "1", "--micro-steps-per-mini-batch", "2"]
        arguments = ["--heat", f"{heat}:tokens", "--sequences-per-micro-step", "32"]
        assert (
            main([*SMALL, *arguments, *short, "--policies", "foremoe", "--json", str(record)]) == 0
        )
        found = json.loads(record.read_text())
        assert found["sequences_per_micro_step"] == 32
        speedups[name] = found["policies"][-1]["speedup"]
    assert speedups["skewed"] > 1.5 > speedups["even"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "h100"], "as in h100x64"),
        (["--cluster", "h101x8"], "did you mean 'h100'"),
        (["--cluster", "h100x6", "--ep-size", "3"], "does not divide 8 experts"),
        (["--cluster", "h100x8", "--ep-size", "3"], "divide 8 ranks"),
        (["--model", "mixtral"], "mixtral-8x7b"),
        (["--mini-batches", "0"], "--mini-batches: must be at least 1, got 0"),
        (["--tokens-per-rank", "0"], "--tokens-per-rank: must be at least 1, got 0"),
        (["--seed", "-1"], "--seed: must be at least 0, got -1"),
        (["--target", "0.5"], "--target: must be at least 1.0, got 0.5"),
        (["--target", "nan"], "--target: must be at least 1.0, got nan"),
        (["--spare-slots", "-1"], "--spare-slots: must be at least 0, got -1"),
        (["--spare-slots", "9"], "a layer has 8 experts"),
        (["--trace", "none.npz"], "cannot be read"),
        (["--heat", "none.npz"], "FILE.npz:NAME"),
        (["--heat", "none.npz:heat"], "cannot be read"),
        (["--sequences-per-micro-step", "6"], "a multiple of the 4 ranks"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
