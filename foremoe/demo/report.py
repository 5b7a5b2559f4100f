"""The demo's closing table and its JSON report."""

import platform
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
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

    update_load: of the last step's update stage, ``[M, L, P, E]``.
    """
    stages = {name: _stage(name, steps) for name in ("recompute", "update")}
    both = [stages["recompute"], stages["update"]]
    window = max(1, len(steps) // 4)
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
        "speedup": _ratio(both, "seconds_unbalanced", "seconds_balanced"),
        "speedup_from_balance_alone": _ratio(both, "busiest_tokens_before", "busiest_tokens_after"),
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
    lines = [
        f"recompute + update: {report['speedup']:.2f}x faster balanced; "
        f"balance alone would allow {report['speedup_from_balance_alone']:.2f}x",
        f"reward: {report['reward_first']:.3f} (first {window} steps) -> "
        f"{report['reward_last']:.3f} (last {window})",
        f"largest difference: loss {report['largest_loss_difference']:.1e}, "
        f"gradient {report['largest_gradient_difference']:.1e} "
        f"(largest gradient {report['largest_gradient']:.1e})",
    ]
    for reason, count in report["degraded_micro_steps"].items():
        lines.append(f"{count} micro-steps ran without replicas: {reason}")
    return Group(table, *lines)


def _stage(name: str, steps: list[dict[str, Any]]) -> dict[str, float]:
    """Means over steps of one stage's figures, and their ratios."""
    stages = [step["stages"][name] for step in steps]
    keys = [key for key, value in stages[0].items() if isinstance(value, int | float)]
    means = {key: float(np.mean([stage[key] for stage in stages])) for key in keys}
    means["speedup"] = _ratio([means], "seconds_unbalanced", "seconds_balanced")
    means["speedup_from_balance_alone"] = _ratio(
        [means], "busiest_tokens_before", "busiest_tokens_after"
    )
    return means


def _ratio(stages: list[dict[str, float]], above: str, below: str) -> float:
    return sum(stage[above] for stage in stages) / sum(stage[below] for stage in stages)
