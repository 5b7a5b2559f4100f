"""``foremoe plan``: figures that hold on recorded routing, plans that check, errors in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foremoe.cli import main
from foremoe.commands.plan import stage_load
from foremoe.planner.archive import load_plans
from foremoe.planner.figures import copied
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import home_tokens
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import Topology
from foremoe.planner.validate import validate
from tests.foresight.test_trace import fields, write
from tests.planner.recorded import recorded


def test_sequences_are_dealt_in_file_order() -> None:
    histograms = np.zeros((5, 1, 2), np.uint32)
    histograms[:, 0, 0] = [1, 2, 4, 8, 16]
    load = stage_load(histograms, ranks=2, sequences_per_micro_step=3)
    # The third sequence of a micro-step is back on rank 0; the last micro-step is smaller.
    assert load[:, 0, :, 0].tolist() == [[1 + 4, 2], [8, 16]]


def test_a_copy_is_a_replica_its_rank_did_not_hold_before() -> None:
    placed = np.array([[[[3, -1]]], [[[5, 3]]], [[[3, -1]]], [[[-1, -1]]], [[[3, -1]]]], np.int32)
    assert copied(placed)[:, 0].tolist() == [1, 1, 0, 0, 1]


def test_json_and_plans_agree_with_the_trace(tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.npz", fields())
    outputs = ["--json", str(tmp_path / "out.json"), "--plans", str(tmp_path / "plans.npz")]
    options = ["--ranks", "4", "--nodes", "2", "--spare-slots", "2"]
    assert main(["plan", str(trace), *options, "--sequences-per-micro-step", "2", *outputs]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    plans = load_plans(tmp_path / "plans.npz")
    assert (record["micro_steps"], record["policy"], record["nodes"]) == (2, "foremoe", 2)
    for plan in plans:
        validate(plan, plan.load, Topology(4, 2), 2)
    after = np.stack([imbalance(plan.rank_tokens()) for plan in plans])
    assert record["imbalance_after"]["mean"] == pytest.approx(float(after.mean()))
    assert record["imbalance_after"]["max"] <= record["imbalance_before"]["max"]
    assert sum(int(plan.load.sum()) for plan in plans) == fields()["experts"].size


def test_a_packed_schedule_holds_the_same_pairs_within_the_limits(tmp_path: Path) -> None:
    trace, plans = write(tmp_path / "trace.npz", fields()), tmp_path / "plans.npz"
    options = ["--schedule", "packed", "--sequences-per-micro-step", "4", "--plans", str(plans)]
    record = run(trace, tmp_path, *options)
    assert record["schedule"] == "packed"
    packing = record["packing"]
    assert packing["bound"] <= packing["cost"] <= packing["length_only_cost"]
    loads = [plan.load for plan in load_plans(plans)]
    assert len(loads) == record["micro_steps"] == 1  # three sequences, one for each of four ranks
    assert sum(int(load.sum()) for load in loads) == fields()["experts"].size
    without = run(trace, tmp_path, *options[:4], "--policy", "none")
    busiest = sum(home_tokens(load, contiguous_homes(3, 8, 4)).max(axis=1).sum() for load in loads)
    assert packing["cost"] == busiest
    assert without["packing"] == packing


def test_a_token_budget_takes_the_place_of_the_number_of_sequences(tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.npz", fields())
    lengths = np.diff(fields()["offsets"])
    options = ["--schedule", "packed", "--token-budget", str(lengths.max())]
    record = run(trace, tmp_path, "--ranks", "2", *options, "--attention", "1", "0.5")
    assert (record["token_budget"], record["sequences_per_micro_step"]) == (lengths.max(), None)
    assert run(trace, tmp_path)["packing"] is None


@pytest.mark.parametrize("schedule", ["file", "packed"])
def test_a_trace_without_tokens_is_planned_without_replicas(tmp_path: Path, schedule: str) -> None:
    nothing = {"experts": fields()["experts"][:0], "offsets": np.zeros(4, np.int64)}
    trace = write(tmp_path / "trace.npz", {**fields(), **nothing})
    record = run(trace, tmp_path, "--schedule", schedule)
    assert record["imbalance_after"] == {"mean": 1, "p99": 1, "max": 1}
    assert record["replicas_per_layer"] == {"mean": 0, "max": 0}


def test_policy_none_changes_nothing(tmp_path: Path) -> None:
    record = run(write(tmp_path / "trace.npz", fields()), tmp_path, "--policy", "none")
    assert record["imbalance_after"] == record["imbalance_before"]
    assert record["copies_per_layer"] == {"mean": 0, "max": 0}


@pytest.mark.parametrize("stage", [None, "recompute"])
def test_a_model_adds_estimated_seconds(tmp_path: Path, stage: str | None) -> None:
    trace = write(tmp_path / "trace.npz", fields())
    record = run(trace, tmp_path, "--model", "mixtral-8x7b", *(("--stage", stage) if stage else ()))
    assert (record["model"], record["cluster"]) == ("mixtral-8x7b", "h100")
    assert record["stage"] == (stage or "update")
    before, after = record["estimated_seconds_before"], record["estimated_seconds_after"]
    for seconds in (before, after):
        parts = ("compute", "dispatch", "exposed_copies")
        assert seconds["total"] == pytest.approx(sum(seconds[part] for part in parts))
    assert 0 < after["total"] <= before["total"]
    assert run(trace, tmp_path)["estimated_seconds_after"] is None


def test_all_policies_are_compared(tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.npz", fields())
    output = tmp_path / "out.json"
    assert main(["plan", str(trace), "--ranks", "4", "--policy", "all", "--json", str(output)]) == 0
    records = {record["policy"]: record for record in json.loads(output.read_text())}
    assert list(records) == list(POLICIES)
    assert len({json.dumps(record["imbalance_before"]) for record in records.values()}) == 1
    best = records["foremoe"]["imbalance_after"]["mean"]
    assert best <= records["greedy"]["imbalance_after"]["mean"]


def test_homes_for_the_step_help_and_leave_the_comparison_alone(tmp_path: Path) -> None:
    content = fields()
    content["experts"][:] = np.array([0, 1], np.uint8)  # both at home on the same rank
    trace = write(tmp_path / "trace.npz", content)
    contiguous = run(trace, tmp_path, "--policy", "none")
    step = run(trace, tmp_path, "--policy", "none", "--homes", "step")
    assert step["imbalance_before"] == contiguous["imbalance_before"]
    assert step["imbalance_after"]["mean"] < contiguous["imbalance_after"]["mean"]
    assert contiguous["homes_moved_per_layer"] == 0 < step["homes_moved_per_layer"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "4", "--policy", "all", "--plans", "plans.npz"], "--plans"),
        (["--ranks", "3"], "--ranks: 8 experts cannot be shared evenly by 3 ranks"),
        (["--ranks", "0"], "--ranks: must be at least 1"),
        (["--ranks", "4", "--nodes", "3"], "cannot be shared evenly by 3 nodes"),
        (["--ranks", "4", "--spare-slots", "-1"], "--spare-slots: must be"),
        (["--ranks", "4", "--spare-slots", "100000000000"], "slots a rank are of no use"),
        (["--ranks", "4", "--sequences-per-micro-step", "0"], "at least 1"),
        (["--ranks", "4", "--target", "0.5"], "--target: must be"),
        (["--ranks", "4", "--cluster", "h100"], "--cluster: estimates need --model"),
        (["--ranks", "4", "--stage", "update"], "--stage: estimates need --model"),
        (["--ranks", "4", "--model", "olmoe-1b-7b"], "olmoe-1b-7b has 64 experts"),
        (["--ranks", "4", "--model", "mixtral"], "did you mean 'mixtral-8x7b'?"),
        (["--ranks", "4", "--model", "mixtral-8x7b", "--cluster", "h10"], "mean 'h100'?"),
        (["--ranks", "4", "--token-budget", "9"], "need --schedule packed"),
        (["--ranks", "4", "--attention", "1", "0"], "need --schedule packed"),
        (
            ["--ranks", "4", "--schedule", "packed", "--token-budget", "1"],
            "--token-budget: must be",
        ),
        (
            ["--ranks", "4", "--schedule", "packed", "--attention", "-1", "0"],
            "--attention: must be",
        ),
        (["--ranks", "4", "--json", "/nowhere/at/all.json"], "--json: cannot write"),
    ],
)
def test_bad_options_end_with_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    trace = write(tmp_path / "trace.npz", fields())
    assert main(["plan", str(trace), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("foremoe plan: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_trace_ends_with_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tmp_path / "none.npz"), "--ranks", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.traces
@pytest.mark.parametrize(
    ("ranks", "options", "mean", "worst", "copies"),
    [
        ("8", ["--spare-slots", "1"], 1.002, 1.04, 7.0),
        ("8", ["--spare-slots", "2"], 1.0005, 1.002, 7.0),
        ("16", ["--spare-slots", "1"], 1.002, 1.0025, 14.0),
        ("8", ["--spare-slots", "1", "--target", "1.02"], 1.02, 1.04, 5.3),
        ("16", ["--spare-slots", "1", "--target", "1.02"], 1.02, 1.021, 10.5),
    ],
)
def test_recorded_routing_is_balanced(
    tmp_path: Path, ranks: str, options: list[str], mean: float, worst: float, copies: float
) -> None:
    trace = recorded("gpt_oss_20b.npz")
    record = run(trace, tmp_path, "--ranks", ranks, "--sequences-per-micro-step", "8", *options)
    assert record["imbalance_before"]["mean"] > 1.5
    assert record["imbalance_after"]["mean"] <= mean
    assert record["imbalance_after"]["max"] <= worst
    assert record["replicas_per_layer"]["mean"] <= copies


def run(trace: Path, folder: Path, *options: str) -> dict[str, Any]:
    given = options if "--ranks" in options else ("--ranks", "4", *options)
    assert main(["plan", str(trace), *given, "--json", str(folder / "out.json")]) == 0
    record: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return record
