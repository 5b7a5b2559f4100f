"""Rank by rank: where (token, expert) pairs are dispatched, without replicas and with them."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.traffic import stage_traffic
from foremoe.report.chart import Chart, Numbers, new_drawing
from foremoe.report.plans_run import PlansRun
from foremoe.report.style import ACCENT, HEAT, INK, MUTED, ON_HEAT, bare

MAX_WRITTEN_RANKS = 10  # above this the cells are too small for numbers
MAX_LABELS = 16


def traffic(run: PlansRun) -> Chart:
    """Without replicas, all experts are at contiguous homes."""
    _, layers, ranks, experts = run.shape
    before, after = stage_traffic(run.plans, contiguous_homes(layers, experts, ranks))
    return traffic_chart(before, after, "traffic")


def traffic_chart(
    before: NDArray[np.int64], after: NDArray[np.int64], slug: str, when: str = ""
) -> Chart:
    """Both matrices ``[P, P]`` on one scale, with what every rank receives above them.

    when: how the finding begins.
    """
    ranks = len(before)
    matrices = {"without replicas": before, "with replicas": after}
    drawing = new_drawing(4.8)
    grid = drawing.subplots(2, 2, height_ratios=(1, 4), sharex=True)
    most = max(int(matrix.max()) for matrix in matrices.values())
    highest = max(float(_received(matrix).max()) for matrix in matrices.values())
    for column, (name, matrix) in enumerate(matrices.items()):
        top, bottom = grid[0][column], grid[1][column]
        top.bar(range(ranks), _received(matrix), color=ACCENT if column else MUTED, width=0.7)
        top.axhline(1.0, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        top.set_ylim(0, 1.05 * highest)
        top.set_title(name)
        bare(top)
        _matrix(bottom, matrix, most, "before" if matrix is before else "after")
        bottom.set_xlabel("computed on rank")
    grid[0][0].set_ylabel("received / mean")
    grid[1][0].set_ylabel("tokens of rank")
    busiest = [float(imbalance(matrix.sum(axis=0))) for matrix in matrices.values()]
    away = [1 - np.trace(matrix) / max(1, matrix.sum()) for matrix in matrices.values()]
    finding = (
        f"{when}{away[1]:.0%} of the pairs travel, {away[0]:.0%} without replicas; "
        f"the busiest rank receives {busiest[1]:.2f}x the mean, {busiest[0]:.2f}x without"
    )
    return Chart(
        slug,
        finding,
        "Dispatched (token, expert) pairs of the whole stage from the rank whose tokens they are "
        "to the rank that computes them. The diagonal stays at home. "
        + ("Cells: percent of all pairs." if ranks <= MAX_WRITTEN_RANKS else ""),
        f"Two matrices of {ranks} by {ranks} ranks. {finding}.",
        drawing,
        Numbers(
            ("tokens of rank", *(f"{n} {r}" for n in ("without", "with") for r in range(ranks))),
            [
                (source, *(int(v) for matrix in matrices.values() for v in matrix[source]))
                for source in range(ranks)
            ],
        ),
    )


def _received(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    received: NDArray[np.float64] = matrix.sum(axis=0) * len(matrix) / max(1, int(matrix.sum()))
    return received


def _matrix(axes: Axes, matrix: NDArray[np.int64], most: int, name: str) -> None:
    ranks = len(matrix)
    image = axes.imshow(
        matrix, HEAT, vmin=0, vmax=max(1, most), interpolation="none", aspect="auto"
    )
    image.set_gid(f"matrix-{name}")
    shown = range(0, ranks, -(-ranks // MAX_LABELS))
    axes.set_xticks(shown)
    axes.set_yticks(shown)
    bare(axes)
    if ranks > MAX_WRITTEN_RANKS:
        return
    share = 100 * matrix / max(1, int(matrix.sum()))
    for source, rank in np.ndindex(matrix.shape):
        dark = matrix[source, rank] > 0.8 * most
        colour = ON_HEAT if dark else INK
        axes.text(
            rank, source, f"{share[source, rank]:.1f}", ha="center", va="center", color=colour
        )
