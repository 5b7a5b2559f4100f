"""Imbalance by micro-step, before and after, with bands over the layers."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from foremoe.report.chart import Chart, Numbers, new_drawing
from foremoe.report.plans_run import PlansRun
from foremoe.report.style import ACCENT, MUTED, horizontal_grid, whole_numbers

BAND = (10, 90)  # percentiles over layers


def imbalance_chart(run: PlansRun) -> Chart:
    """Median and 10th to 90th percentile over layers of every micro-step."""
    before, after = run.before(), run.after()
    drawing = new_drawing(3.4)
    axes = drawing.subplots()
    for name, values, colour in (("before", before, MUTED), ("after", after, ACCENT)):
        _band(axes, values, colour, name)
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_ylim(min(0.98, 1 - 0.03 * (float(before.max()) - 1)))
    axes.set_xlim(-0.5, len(before) - 0.5)
    whole_numbers(axes.xaxis)
    axes.set_xlabel("micro-step")
    axes.set_ylabel("imbalance (busiest rank / mean)")
    horizontal_grid(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.12), ncols=2)
    finding = (
        f"Imbalance falls from {before.mean():.2f} to {after.mean():.3f}; "
        f"the worst layer from {before.max():.2f} to {after.max():.3f}"
    )
    return Chart(
        "imbalance",
        finding,
        f"Line: median over {before.shape[1]} layers; band: {BAND[0]}th to {BAND[1]}th percentile. "
        "Before: contiguous homes, no replicas. 1.0 is perfect balance.",
        f"Two lines over {len(before)} micro-steps. {finding}.",
        drawing,
        Numbers(
            ("micro-step", *(f"{when} {name}" for when in ("before", "after") for name in _NAMES)),
            [(m, *_row(before[m]), *_row(after[m])) for m in range(len(before))],
        ),
    )


_NAMES = ("p10", "median", "p90", "max")


def _row(values: NDArray[np.float64]) -> tuple[float, ...]:
    low, high = np.percentile(values, BAND)
    return float(low), float(np.median(values)), float(high), float(values.max())


def _band(axes: Axes, values: NDArray[np.float64], colour: str, name: str) -> None:
    micro_steps = np.arange(len(values))
    low, high = np.percentile(values, BAND, axis=1)
    marker = "o" if len(values) < 4 else None  # a line of one point is not seen
    if marker:
        axes.vlines(micro_steps, low, high, color=colour, alpha=0.3, linewidth=8)
    else:
        axes.fill_between(micro_steps, low, high, color=colour, alpha=0.2, linewidth=0)
    (line,) = axes.plot(
        micro_steps, np.median(values, axis=1), color=colour, marker=marker, label=name
    )
    line.set_gid(name)
