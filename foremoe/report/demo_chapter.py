"""A chapter on ``foremoe demo --json``: every RL step, balanced and unbalanced."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foremoe.errors import InvalidInputError
from foremoe.planner.figures import timed_plans
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.policies import warm_up
from foremoe.planner.problem import StageProblem, Topology
from foremoe.report.chart import Chapter, Chart, Fact, Numbers, new_drawing
from foremoe.report.plans_chapter import plans_chapter
from foremoe.report.plans_run import PlansRun
from foremoe.report.record import Record
from foremoe.report.style import ACCENT, FAINT, MUTED, RED, horizontal_grid, whole_numbers
from foremoe.runtime.config import RuntimeConfig

STAGES = ("recompute", "update")
MEBIBYTE = 1 << 20
PATHS = {"host": ACCENT, "peer": MUTED, "gradient": FAINT}
LABELS = {"host": "weights, host", "peer": "weights, peer", "gradient": "gradients home"}


def demo_chapter(path: Path, content: Any) -> Chapter:
    """InvalidInputError if it is no such report."""
    report = Record(path, content)
    stages = {stage: report.record("stages").record(stage) for stage in STAGES}
    steps = {
        stage: [step.record("stages").record(stage) for step in report.records("steps")]
        for stage in STAGES
    }
    options = report.record("options")
    return Chapter(
        f"Demo: {options.text('ranks')} ranks, {len(steps['update'])} RL steps",
        str(path),
        _facts(report, stages),
        [_imbalance(steps), _seconds(report, steps), _bytes(steps)],
    )


def demo_chapters(path: Path, content: Any) -> list[Chapter]:
    """What was measured, and the plans of the last step's update stage."""
    chapter = demo_chapter(path, content)
    run = demo_plans(path, content)
    return [chapter] if run is None else [chapter, plans_chapter(run, None)]


def demo_plans(path: Path, content: Any) -> PlansRun | None:
    """Made again from the load, with the daemon's defaults: the daemon's plans, byte for byte.

    None for a report without load; InvalidInputError for one of another shape.
    """
    if content.get("update_load") is None:
        return None
    options, defaults = Record(path, content).record("options"), RuntimeConfig("")
    try:
        load = np.array(content["update_load"], np.int64)
        _, layers, ranks, experts = load.shape
        slots, mini_batches = (int(options.number(k)) for k in ("spare_slots", "mini_batches"))
        problem = StageProblem(
            load=load,
            home=contiguous_homes(layers, experts, ranks),
            mini_batch=np.repeat(np.arange(mini_batches), len(load) // mini_batches).astype(
                np.int32
            ),
            topology=Topology(ranks, ranks),
            spare_slots=slots,
            target=defaults.target,
        )
    except (InvalidInputError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(f"{path}: update_load is no load of a stage ({error})") from error
    warm_up([defaults.policy])
    plans, seconds = timed_plans(problem, defaults.policy)
    source = f"{path}, update stage of the last step, planned again"
    return PlansRun(source, plans, problem.topology, defaults.policy, defaults.target, seconds)


def _facts(report: Record, stages: dict[str, Record]) -> list[Fact]:
    speedup, alone = report.number("speedup"), report.number("speedup_from_balance_alone")
    update = stages["update"]
    before, after = update.number("imbalance_before"), update.number("imbalance_after")
    loss = report.number("largest_loss_difference")
    return [
        Fact("imbalance-before", "imbalance before, update", before, f"{before:.3f}"),
        Fact("imbalance-after", "imbalance after, update", after, f"{after:.3f}"),
        Fact("speedup", "recompute + update, measured", speedup, f"{speedup:.2f}x"),
        Fact("speedup-alone", "balance alone would allow", alone, f"{alone:.2f}x"),
        Fact("loss-difference", "largest difference in loss", loss, f"{loss:.1e}"),
    ]


def _values(steps: list[Record], key: str) -> list[float]:
    return [step.number(key) for step in steps]


def _panels(height: float, steps: int) -> tuple[Figure, list[Axes]]:
    drawing = new_drawing(height)
    panels = list(drawing.subplots(1, 2, sharey=False))
    for axes, stage in zip(panels, STAGES, strict=True):
        axes.set_title(stage)
        axes.set_xlabel("RL step")
        axes.set_xlim(-0.6, steps - 0.4)
        whole_numbers(axes.xaxis)
        horizontal_grid(axes)
    return drawing, panels


def _imbalance(steps: dict[str, list[Record]]) -> Chart:
    count = len(steps["update"])
    drawing, panels = _panels(3.0, count)
    means = []
    for axes, stage in zip(panels, STAGES, strict=True):
        for name, colour in (("before", MUTED), ("after", ACCENT)):
            values = _values(steps[stage], f"imbalance_{name}")
            means.append(float(np.mean(values)))
            (line,) = axes.plot(range(count), values, "o-", color=colour, label=name, markersize=4)
            line.set_gid(f"{stage}-{name}")
        axes.set_ylim(0.98)
    panels[0].set_ylabel("imbalance")
    panels[1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    finding = f"Update: imbalance {means[2]:.2f} without replicas, {means[3]:.3f} with them"
    return Chart(
        "demo-imbalance",
        finding,
        "As measured: pairs that the busiest rank computed over the mean, by RL step.",
        f"Two panels of two lines over {count} steps. {finding}.",
        drawing,
        _table(steps, ("imbalance_before", "imbalance_after")),
    )


def _seconds(report: Record, steps: dict[str, list[Record]]) -> Chart:
    count = len(steps["update"])
    drawing, panels = _panels(3.0, count)
    for axes, stage in zip(panels, STAGES, strict=True):
        place = np.arange(count)
        unbalanced = np.array(_values(steps[stage], "seconds_unbalanced"))
        balanced = np.array(_values(steps[stage], "seconds_balanced"))
        exposed = np.array(_values(steps[stage], "exposed_seconds"))
        axes.bar(place - 0.2, unbalanced, 0.36, color=FAINT, label="unbalanced")
        axes.bar(place + 0.2, balanced, 0.36, color=ACCENT, label="balanced")
        axes.bar(place + 0.2, exposed, 0.36, color=RED, label="of it exposed")
    panels[0].set_ylabel("seconds")
    panels[1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    speedup, alone = report.number("speedup"), report.number("speedup_from_balance_alone")
    finding = (
        f"Recompute and update are {speedup:.2f}x as fast balanced; "
        f"balance alone would allow {alone:.2f}x"
    )
    keys = ("seconds_unbalanced", "seconds_balanced", "exposed_seconds")
    return Chart(
        "demo-seconds",
        finding,
        "Wall time of each stage, both ways from the same weights. Red: time that the worst rank "
        "waited for weights or gradients.",
        f"Bars for {count} steps in two panels. {finding}.",
        drawing,
        _table(steps, keys),
    )


def _bytes(steps: dict[str, list[Record]]) -> Chart:
    count = len(steps["update"])
    drawing, panels = _panels(2.8, count)
    totals = dict.fromkeys(PATHS, 0.0)
    for axes, stage in zip(panels, STAGES, strict=True):
        bottom = np.zeros(count)
        for path, colour in PATHS.items():
            values = np.array(_values(steps[stage], f"{path}_bytes")) / MEBIBYTE
            axes.bar(range(count), values, 0.7, bottom, color=colour, label=LABELS[path])
            bottom += values
            totals[path] += float(values.sum())
    panels[0].set_ylabel("MiB")
    panels[1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    finding = (
        f"{totals['host']:.0f} MiB of weights came by the host path, {totals['peer']:.0f} MiB from "
        f"peers; {totals['gradient']:.0f} MiB of gradients went home"
    )
    return Chart(
        "demo-bytes",
        finding,
        "Received by all ranks in the balanced run of each RL step, by path.",
        f"Stacked bars for {count} steps in two panels. {finding}.",
        drawing,
        _table(steps, tuple(f"{path}_bytes" for path in PATHS)),
    )


def _table(steps: dict[str, list[Record]], keys: tuple[str, ...]) -> Numbers:
    count = len(steps["update"])
    return Numbers(
        ("RL step", *(f"{stage} {key}" for stage in STAGES for key in keys)),
        [
            (step, *(steps[stage][step].number(key) for stage in STAGES for key in keys))
            for step in range(count)
        ],
    )
