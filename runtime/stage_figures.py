"""What is kept of a planned stage for its report: little, whatever the stage's size."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.figures import copied
from foremoe.planner.plan import Plan
from foremoe.planner.traffic import stage_traffic
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.stage_figures import COLUMNS, LoadSample, StageFigures, band_of

MICRO_STEPS = 2048
TRAFFIC_RANKS = 128
SAMPLE_MICRO_STEPS = 16
SAMPLE_ENTRIES = 1 << 17  # of the sample's load
MOST_PAIRS = 2**32 - 1  # that it can say


def figures_bytes(micro_steps: int, layers: int, ranks: int, experts: int) -> int:
    """The most that the arrays of a stage take."""
    sampled, sampled_layers = _sampled(micro_steps, layers, ranks * experts)
    sample = sampled_layers * (sampled * ranks + 1) * experts * 4
    traffic = 2 * ranks * ranks * 8 if ranks <= TRAFFIC_RANKS else 0
    return min(micro_steps, MICRO_STEPS) * (COLUMNS + 3) * 8 + traffic + sample


def stage_figures(
    group: RankRegistration,
    submitted_unix_ns: int,
    planning: NDArray[np.float64],
    plans: Sequence[Plan],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
) -> StageFigures:
    """submitted_unix_ns: when the schedule arrived.

    planning: ``[M, 2]``, when planning of each plan began and ended, in seconds since then.
    before, after: imbalance ``[M, L]``.
    """
    ranks, seconds = group.ranks, planning[:MICRO_STEPS]
    return StageFigures(
        np.concatenate([band_of(before[:MICRO_STEPS]), band_of(after[:MICRO_STEPS])], axis=1),
        stage_traffic(plans) if ranks <= TRAFFIC_RANKS else None,
        submitted_unix_ns,
        np.column_stack([seconds, np.full(len(seconds), np.nan)]),
        _sample(group, plans, after),
    )


def _sampled(micro_steps: int, layers: int, entries: int) -> tuple[int, int]:
    """Micro-steps and layers of the sample; entries: of one of each."""
    taken = min(micro_steps, SAMPLE_MICRO_STEPS, SAMPLE_ENTRIES // entries)
    return taken, min(layers, SAMPLE_ENTRIES // (taken * entries)) if taken else 0


def _sample(
    group: RankRegistration, plans: Sequence[Plan], after: NDArray[np.float64]
) -> LoadSample | None:
    layers = group.layers
    taken, count = _sampled(len(plans), len(layers), plans[0].load[0].size)
    if not taken:
        return None
    rows = (np.arange(count) * len(layers) + len(layers) // 2) // count  # evenly spread
    load = np.stack([plan.load[rows] for plan in plans[:taken]])
    placed = np.stack([plan.replica_expert[rows] for plan in plans[:taken]])
    return LoadSample(
        np.minimum(load, MOST_PAIRS).astype(np.uint32),
        plans[0].home[rows],
        tuple(layers[row] for row in rows.tolist()),
        float(after[:taken, rows].mean()),
        float(copied(placed).mean()),
        group.ranks_per_node,
    )
