"""Layer by expert: the load of the worst micro-step, its replicas, and what they gain."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from foremoe.report.chart import Chart, Numbers, new_drawing
from foremoe.report.plans_run import PlansRun
from foremoe.report.style import ACCENT, FAINT, HEAT, INK, MUTED, PAPER, WIDTH, bare
from foremoe.rpc.worst_micro_step import WorstMicroStep

MAX_LABELS = 16
MAX_LAYER_LABELS = 24
MAX_MARKS = 4000  # more are drawn as one image, to keep the page small


def heatmap(run: PlansRun) -> Chart:
    """Of the micro-step whose layers are the most imbalanced before."""
    before, after = run.before(), run.after()
    index = int(before.mean(axis=1).argmax())
    plan = run.plans[index]
    worst = WorstMicroStep(
        index, plan.load.sum(axis=1), plan.home, plan.replica_expert, before[index], after[index]
    )
    return heatmap_of(worst, range(len(plan.home)), "heatmap", "At its worst")


def heatmap_of(worst: WorstMicroStep, layers: Sequence[int], slug: str, when: str) -> Chart:
    """layers: their names. when: how the finding begins."""
    rows, experts = worst.load.shape
    ranks = worst.replica_expert.shape[1]
    order = np.argsort(worst.home, axis=1, kind="stable")
    pairs = np.take_along_axis(worst.load, order, axis=1)
    heat = pairs * experts / np.maximum(pairs.sum(axis=1, keepdims=True), 1)
    placed = (worst.replica_expert >= 0).sum(axis=(1, 2))
    before, after = worst.imbalance_before, worst.imbalance_after
    drawing = new_drawing(min(1.6 + 0.16 * rows, 9.0))
    left, right = drawing.subplots(1, 2, sharey=True, width_ratios=(5, 1))
    image = left.imshow(heat, cmap=HEAT, vmin=0, aspect="auto", interpolation="none")
    image.set_gid("heat")
    _replicas(left, worst.replica_expert, order)
    for rank in range(1, ranks):
        left.axvline(rank * experts / ranks - 0.5, color=FAINT, linewidth=0.6)
    _axes(left, ranks, experts, layers)
    bar = drawing.colorbar(image, ax=left, location="top", aspect=60, shrink=0.4, anchor=(0, 0))
    bar.set_label("pairs of the expert / mean of its layer", loc="left")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    _gain(right, before, after)
    finding = (
        f"{when} (micro-step {worst.micro_step}) one expert gets {heat.max():.1f}x the mean; "
        f"{placed.sum()} replicas bring {before.mean():.2f} to {after.mean():.3f}"
    )
    return Chart(
        slug,
        finding,
        "Left: load of the micro-step with the highest imbalance; each column is an expert, "
        "grouped by home rank, and a dot is its replicas, the larger the more of them. "
        "Right: every layer's imbalance before (grey) and after (blue).",
        f"Heat map of {rows} layers by {experts} experts with {placed.sum()} replicas. {finding}.",
        drawing,
        Numbers(
            ("layer", "hottest expert / mean", "replicas", "before", "after"),
            [
                (
                    layer,
                    float(heat[row].max()),
                    int(placed[row]),
                    float(before[row]),
                    float(after[row]),
                )
                for row, layer in enumerate(layers)
            ],
        ),
    )


def _replicas(axes: Axes, replica_expert: NDArray[np.int32], order: NDArray[np.int64]) -> None:
    """A dot on every expert that has replicas."""
    layers, experts = order.shape
    counts = np.zeros((layers, experts), np.int64)
    layer, rank, slot = np.nonzero(replica_expert >= 0)
    np.add.at(counts, (layer, replica_expert[layer, rank, slot]), 1)
    counts = np.take_along_axis(counts, order, axis=1)
    row, column = np.nonzero(counts)
    cell = min(0.75 * WIDTH * 72 / experts, 11.0)  # points
    size = np.minimum(counts[row, column], 4)
    for count in np.unique(size).tolist():
        chosen = size == count
        (dots,) = axes.plot(column[chosen], row[chosen], "o", color=INK, markeredgecolor=PAPER)
        dots.set(markersize=0.36 * cell * count**0.5, markeredgewidth=0.5, gid=f"replicas-{count}")
        dots.set_rasterized(len(row) > MAX_MARKS)


def _axes(axes: Axes, ranks: int, experts: int, layers: Sequence[int]) -> None:
    step = -(-ranks // MAX_LABELS)
    shown = np.arange(0, ranks, step)
    axes.set_xticks((shown + 0.5) * experts / ranks - 0.5, [f"rank {rank}" for rank in shown])
    axes.set_xlabel(f"{experts} experts by home rank")
    axes.set_ylabel("layer")
    rows = range(0, len(layers), -(-len(layers) // MAX_LAYER_LABELS))
    axes.set_yticks(rows, [str(layers[row]) for row in rows])
    bare(axes)


def _gain(axes: Axes, before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
    rows = np.arange(len(before))
    axes.hlines(rows, after, before, color=FAINT, linewidth=1)
    axes.scatter(before, rows, s=14, color=MUTED).set_gid("before")
    axes.scatter(after, rows, s=14, color=ACCENT).set_gid("after")
    axes.set_xlim(min(0.98, 1 - 0.05 * (float(before.max()) - 1)))
    axes.set_xlabel("imbalance")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
