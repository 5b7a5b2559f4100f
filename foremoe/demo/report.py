"""The demo's closing table and its JSON report."""

import platform
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from foremoe import __version__
from foremoe.demo.machine import describe_machine
from foremoe.demo.options import DemoOptions

MEBIBYTE = 1 << 20

_Figure = Callable[[dict[str, float]], str]


def _mebibytes(path: str) -> _Figure:
    return lambda stage: f"{stage[f'{path}_bytes'] / MEBIBYTE:.1f} MiB"


_ROWS: dict[str, _Figure] = {
    "imbalance": lambda s: f"{s['imbalance_before']:.3f} -> {s['imbalance_after']:.3f}",
    "seconds": lambda s: f"{s['seconds_unbalanced']:.2f} -> {s['seconds_balanced']:.2f}",
    "speedup": lambda s: f"{s['speedup']:.2f}x",
    "speedup that balance alone allows": lambda s: f"{s['speedup_from_balance_alone']:.2f}x",
    "exposed copy time": lambda s: f"{1e3 * s['exposed_seconds']:.1f} ms",
    "weights by the host path": _mebibytes("host"),
    "weights by the peer path": _mebibytes("peer"),
    "gradients home": _mebibytes("gradient"),
}


def summarise(options: DemoOptions, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """The report: options, machine, per-stage figures over all steps, and every step.

    Seconds are medians over the steps, so that a step disturbed by whatever else the machine does
    counts no more than any other; all other figures are means. speedup_range: of single steps.

    update_load: of the last step's update stage, ``[M, L, P, E]``.
    """
    stages = {name: _stage(name, steps) for name in ("recompute", "update")}
    both = list(stages)
    unbalanced, balanced = (
        _by_step(steps, both, f"seconds_{way}") for way in ("unbalanced", "balanced")
    )
    ratios = unbalanced / balanced
    window = min(3, max(1, len(steps) // 2))
    degraded = Counter(
        reason
        for step in steps
        for stage in step["stages"].values()
        for reason in stage["degraded"].values()
    )
    return {
        "foremoe": __version__,
        "python": platform.python_version(),
        "machine": describe_machine(),
        "options": options.record(),
        "stages": stages,
        "speedup": float(np.median(unbalanced) / np.median(balanced)),
        "speedup_range": [float(ratios.min()), float(ratios.max())],
        "speedup_from_balance_alone": _allowed(steps, both),
        "reward_first": float(np.mean([step["reward"] for step in steps[:window]])),
        "reward_last": float(np.mean([step["reward"] for step in steps[-window:]])),
        "reward_window_steps": window,
        "largest_loss_difference": max(step["loss_difference"] for step in steps),
        "largest_gradient_difference": max(step["gradient_difference"] for step in steps),
        "largest_gradient": max(step["gradient_scale"] for step in steps),
        "degraded_micro_steps": dict(degraded),
        "update_load": steps[-1].get("load"),
        "steps": [{k: v for k, v in s.items() if k not in ("event", "load")} for s in steps],
    }


def describe(report: dict[str, Any]) -> Group:
    """What is printed at the end."""
    table = Table(title="each step run balanced and unbalanced from the same state")
    table.add_column("per RL step, unbalanced -> balanced")
    for name in report["stages"]:
        table.add_column(name, justify="right")
    for label, figure in _ROWS.items():
        table.add_row(label, *(figure(stage) for stage in report["stages"].values()))
    window = report["reward_window_steps"]
    low, high = report["speedup_range"]
    lines = [
        f"recompute + update: speedup {report['speedup']:.2f}x (single steps {low:.2f}x to "
        f"{high:.2f}x); balance alone would allow {report['speedup_from_balance_alone']:.2f}x",
        f"reward: {report['reward_first']:.3f} (mean of the first {window}) -> "
        f"{report['reward_last']:.3f} (of the last {window})",
        f"largest difference: loss {report['largest_loss_difference']:.1e}, "
        f"gradient {report['largest_gradient_difference']:.1e} "
        f"(largest gradient {report['largest_gradient']:.1e})",
    ]
    for reason, count in report["degraded_micro_steps"].items():
        lines.append(f"{count} micro-steps ran without replicas: {reason}")
    return Group(table, *lines)


def _stage(name: str, steps: list[dict[str, Any]]) -> dict[str, float]:
    """One stage's figures over the steps."""
    first = steps[0]["stages"][name]
    figures = {}
    for key in (key for key, value in first.items() if isinstance(value, int | float)):
        middle = np.median if key.startswith("seconds") else np.mean
        figures[key] = float(middle(_by_step(steps, [name], key)))
    figures["speedup"] = figures["seconds_unbalanced"] / figures["seconds_balanced"]
    figures["speedup_from_balance_alone"] = _allowed(steps, [name])
    return figures


def _allowed(steps: list[dict[str, Any]], names: list[str]) -> float:
    """What the busiest ranks' pairs would allow if there were nothing but experts."""
    before = _by_step(steps, names, "busiest_tokens_before").sum()
    return float(before / _by_step(steps, names, "busiest_tokens_after").sum())


def _by_step(steps: list[dict[str, Any]], names: list[str], key: str) -> NDArray[np.float64]:
    return np.array([sum(step["stages"][name][key] for name in names) for step in steps])
