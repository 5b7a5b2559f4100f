"""What the simulated gain depends on, as one plot."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Drawing

from benchmarks.planner_plots import COLOURS, INK, STYLE
from benchmarks.simulation_cases import Point

LINES = {
    "foremoe": (COLOURS[0], "o"),
    "node-confined": (COLOURS[1], "s"),
    "EPLB oracle": (COLOURS[2], "^"),
    "critical path": (INK, "D"),
    "force-balanced": (INK, ""),
}


def plot(points: Sequence[Point], path: Path) -> None:
    """Speedup over unbalanced, one panel for each thing that changes."""
    axes_names = list(dict.fromkeys(point.axis for point in points))
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(9.6, 3.6), layout="constrained")
        panels = drawing.subplots(1, len(axes_names))
        for axes, name in zip(panels, axes_names, strict=True):
            for policy, (colour, marker) in LINES.items():
                curve = [p for p in points if p.axis == name and p.policy == policy]
                values, speedups = [p.value for p in curve], [p.speedup for p in curve]
                style = ":" if policy == "force-balanced" else "-"
                axes.plot(
                    values, speedups, style, marker=marker, color=colour, markersize=4, label=policy
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
            axes.set_xlabel(name)
            axes.grid(visible=True)
        panels[0].set_ylabel("speedup over unbalanced")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        drawing.savefig(path, transparent=True, metadata={"Date": None})
