"""The planner's figures as plots, in colours that can be read on light and on dark ground."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.typing import RcKeyType

from benchmarks.planner_cases import SLOTS, WAYS
from benchmarks.planner_figures import Figure
from benchmarks.planner_time import ALONE, OVER_TIME, Point

INK = "#747c86"
COLOURS = ("#3b82f6", "#d9730d", "#2a9d5c")
MARKERS = {"greedy": "s", "alias": "^", "eplb-oracle": "D"}
STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "foremoe",  # the same figures give the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def plot_frontier(frontier: list[Figure], path: Path) -> None:
    """Copies against the imbalance reached, one panel for each number of spare slots."""
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(9.6, 3.6), layout="constrained")
        panels = drawing.subplots(1, len(SLOTS), sharey=True)
        for axes, slots in zip(panels, SLOTS, strict=True):
            _frontier_panel(axes, [f for f in frontier if f.spare_slots == slots])
            axes.set_title(f"R = {slots}")
        panels[0].set_ylabel("copies per layer and micro-step")
        panels[1].set_xlabel("mean imbalance reached")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        _save(drawing, path)


def _frontier_panel(axes: Axes, frontier: list[Figure]) -> None:
    for (policy, way), colour in zip(WAYS.items(), COLOURS, strict=True):
        curve = [f for f in frontier if f.policy == policy]
        reached, copies = [f.imbalance_mean for f in curve], [f.copies for f in curve]
        axes.plot(reached, copies, color=colour, marker="o", markersize=4, label=way)
    for policy, marker in MARKERS.items():
        (peer,) = (f for f in frontier if f.policy == policy)
        axes.plot(peer.imbalance_mean, peer.copies, marker, color=INK, label=policy)
    axes.set_yscale("log")
    axes.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.grid(visible=True)


def plot_scaling(points: list[Point], path: Path) -> None:
    """Time against ranks, experts, spare slots and micro-steps."""
    names = list(dict.fromkeys(point.axis for point in points))
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(9.6, 3.2), layout="constrained")
        panels = drawing.subplots(1, len(names), sharey=True)
        for axes, name in zip(panels, names, strict=True):
            for planned, colour in zip((ALONE, OVER_TIME), (COLOURS[0], COLOURS[2]), strict=True):
                curve = sorted(
                    (p.value, p.microseconds)
                    for p in points
                    if p.axis == name and p.planned == planned
                )
                values, taken = zip(*curve, strict=True)
                axes.loglog(values, taken, color=colour, marker="o", markersize=4, label=planned)
            axes.set_xticks(values, [str(value) for value in values])
            axes.minorticks_off()
            axes.set_xlabel(name)
            axes.grid(visible=True)
        panels[0].set_ylabel("µs per layer and micro-step")
        ticks = [10, 20, 50, 100, 200, 500, 1000]
        panels[0].set_yticks(ticks, [str(tick) for tick in ticks])
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        _save(drawing, path)


def _save(drawing: Drawing, path: Path) -> None:
    drawing.savefig(path, transparent=True, metadata={"Date": None})
