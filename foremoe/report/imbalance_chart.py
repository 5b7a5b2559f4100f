"""Imbalance by micro-step, before and after, with bands over the layers."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from numpy.typing import NDArray

from foremoe.report.chart import Chart, Numbers, new_drawing
from foremoe.report.plans_run import PlansRun
from foremoe.report.style import ACCENT, MUTED, horizontal_grid, whole_numbers
from foremoe.rpc.stage_figures import BAND, band_of

CONTIGUOUS = "contiguous homes, no replicas"


def imbalance_chart(run: PlansRun) -> Chart:
    """Of plans; before, all experts are at contiguous homes."""
    before, after = band_of(run.before()), band_of(run.after())
    return bands_chart(before, after, run.shape[1], "imbalance", CONTIGUOUS)


def bands_chart(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    layers: int,
    slug: str,
    homes: str,
    when: str = "",
) -> Chart:
    """Median and 10th to 90th percentile over layers of every micro-step.

    before, after: ``[M, 5]`` as ``band_of`` gives them. homes: what before is. when: how the
    finding begins.
    """
    drawing = new_drawing(3.4)
    axes = drawing.subplots()
    for name, values, colour in (("before", before, MUTED), ("after", after, ACCENT)):
        _band(axes, values, colour, name)
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_ylim(min(0.98, 1 - 0.03 * (float(before[:, _MAX].max()) - 1)))
    axes.set_xlim(-0.5, len(before) - 0.5)
    whole_numbers(axes.xaxis)
    axes.set_xlabel("micro-step")
    axes.set_ylabel("imbalance (busiest rank / mean)")
    horizontal_grid(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.12), ncols=2)
    finding = (
        f"{when}imbalance falls from {before[:, _MEAN].mean():.2f} to "
        f"{after[:, _MEAN].mean():.3f}; the worst layer from {before[:, _MAX].max():.2f} to "
        f"{after[:, _MAX].max():.3f}"
    )
    finding = finding[0].upper() + finding[1:]
    return Chart(
        slug,
        finding,
        f"Line: median over {layers} layers; band: {BAND[0]}th to {BAND[1]}th percentile. "
        f"Before: {homes}. 1.0 is perfect balance.",
        f"Two lines over {len(before)} micro-steps. {finding}.",
        drawing,
        Numbers(
            ("micro-step", *(f"{when} {name}" for when in ("before", "after") for name in _NAMES)),
            [
                (m, *(float(value) for band in (before, after) for value in band[m, :_MEAN]))
                for m in range(len(before))
            ],
        ),
    )


_NAMES = ("p10", "median", "p90", "max")
_MAX, _MEAN = 3, 4  # columns of a band


def _band(axes: Axes, band: NDArray[np.float64], colour: str, name: str) -> None:
    micro_steps = np.arange(len(band))
    low, middle, high = band[:, :3].T
    marker = "o" if len(band) < 4 else None  # a line of one point is not seen
    if marker:
        drawn: Collection = axes.vlines(
            micro_steps, low, high, color=colour, alpha=0.3, linewidth=8
        )
    else:
        drawn = axes.fill_between(micro_steps, low, high, color=colour, alpha=0.2, linewidth=0)
    drawn.set_gid(f"band-{name}")
    (line,) = axes.plot(micro_steps, middle, color=colour, marker=marker, label=name)
    line.set_gid(name)
