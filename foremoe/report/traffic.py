"""Rank by rank: where (token, expert) pairs are dispatched, without replicas and with them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan
from foremoe.report.chart import Chart, Numbers, new_drawing
from foremoe.report.plans_run import PlansRun
from foremoe.report.style import ACCENT, HEAT, INK, MUTED, ON_HEAT, bare

MAX_WRITTEN_RANKS = 10  # above this the cells are too small for numbers
MAX_LABELS = 16


def dispatched(plans: Sequence[Plan]) -> NDArray[np.int64]:
    """Pairs from each source rank to each computing rank, all layers: int64 ``[P, P]``."""
    ranks = plans[0].load.shape[1]
    total = np.zeros((ranks, ranks), np.int64)
    for plan in plans:
        left = plan.load.copy()  # what stays with the homes
        layer, rank, slot = np.nonzero(plan.replica_expert >= 0)
        served = plan.replica_tokens[layer, :, rank, slot]
        expert = plan.replica_expert[layer, rank, slot]
        np.subtract.at(left.transpose(0, 2, 1), (layer, expert), served)
        total += plan.replica_tokens.sum(axis=(0, 3)) + to_homes(left, plan.home)
    return total


def to_homes(load: NDArray[np.int64], home: NDArray[np.int32]) -> NDArray[np.int64]:
    """Pairs from each source to each rank when all go home: ``[L, P, E]`` -> ``[P, P]``."""
    total = np.zeros((load.shape[1], load.shape[1]), np.int64)
    np.add.at(total.T, home, load.transpose(0, 2, 1))
    return total


def traffic(run: PlansRun) -> Chart:
    """Both matrices on one scale, with what every rank receives above them."""
    _, layers, ranks, experts = run.shape
    contiguous = contiguous_homes(layers, experts, ranks)
    without = to_homes(np.concatenate([p.load for p in run.plans]), _repeated(contiguous, run))
    matrices = {"without replicas": without, "with replicas": dispatched(run.plans)}
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
        _matrix(bottom, matrix, most)
        bottom.set_xlabel("computed on rank")
    grid[0][0].set_ylabel("received / mean")
    grid[1][0].set_ylabel("tokens of rank")
    busiest = [float(imbalance(matrix.sum(axis=0))) for matrix in matrices.values()]
    away = [1 - np.trace(matrix) / max(1, matrix.sum()) for matrix in matrices.values()]
    finding = (
        f"{away[1]:.0%} of the pairs travel, {away[0]:.0%} without replicas; "
        f"the busiest rank receives {busiest[1]:.2f}x the mean, {busiest[0]:.2f}x without"
    )
    return Chart(
        "traffic",
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


def _repeated(home: NDArray[np.int32], run: PlansRun) -> NDArray[np.int32]:
    return np.tile(home, (len(run.plans), 1))


def _received(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    received: NDArray[np.float64] = matrix.sum(axis=0) * len(matrix) / max(1, int(matrix.sum()))
    return received


def _matrix(axes: Axes, matrix: NDArray[np.int64], most: int) -> None:
    ranks = len(matrix)
    axes.imshow(matrix, cmap=HEAT, vmin=0, vmax=max(1, most), interpolation="none", aspect="auto")
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
