"""Balance against copies: the plans beside what the planner makes of other targets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foremoe.planner.figures import copied
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem
from foremoe.report.chart import Chart, Numbers, new_drawing
from foremoe.report.plans_run import PlansRun
from foremoe.report.style import ACCENT, INK, MUTED, horizontal_grid

TARGETS = (1.0, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5)
CURVES = {"foremoe": "each micro-step alone", "resident": "over time"}
MAX_LOADS = 2_000_000  # of [M, L, P, E] planned anew for each target: seconds


@dataclass(frozen=True, slots=True)
class Point:
    """Means over micro-steps and layers. copies: new replicas of a layer and micro-step."""

    label: str
    imbalance: float
    copies: float


def frontier(run: PlansRun) -> Chart:
    """Of plans, or of the first ones where they are many."""
    taken = _taken(run)
    problem = StageProblem(
        load=np.stack([plan.load for plan in run.plans[:taken]]),
        home=run.plans[0].home,
        mini_batch=np.zeros(taken, np.int32),
        topology=run.topology,
        spare_slots=run.spare_slots,
        target=None,
    )
    own = point(run.policy or "these plans", run.plans[:taken])
    part = "" if taken == len(run.plans) else f" The first {taken} micro-steps."
    return frontier_chart(problem, own, "frontier", part)


def frontier_chart(
    problem: StageProblem, own: Point, slug: str, part: str = "", when: str = "These plans"
) -> Chart:
    """Plan the same loads for several targets, with and without keeping replicas over time.

    own: what the plans reached. part: what was planned again, for the caption. when: how the
    finding begins.
    """
    curves = {policy: [_point(policy, problem, target) for target in TARGETS] for policy in CURVES}
    drawing = new_drawing(3.4)
    axes = drawing.subplots()
    styles = {"foremoe": (MUTED, "s"), "resident": (ACCENT, "o")}
    for policy, points in curves.items():
        colour, marker = styles[policy]
        (line,) = axes.plot(
            [p.copies for p in points],
            [p.imbalance for p in points],
            color=colour,
            marker=marker,
            markersize=4,
            clip_on=False,
            label=f"{policy}: {CURVES[policy]}",
        )
        line.set_gid(policy)
    (mark,) = axes.plot(
        own.copies, own.imbalance, "*", color=INK, markersize=13, label="these plans", clip_on=False
    )
    mark.set_gid("own")
    axes.set_xlabel("copies per layer and micro-step")
    axes.set_ylabel("imbalance")
    axes.set_xlim(0)
    axes.set_ylim(1.0)
    axes.margins(0.05)
    horizontal_grid(axes)
    axes.legend(loc="upper right")
    finding = (
        f"{when} reach {own.imbalance:.3f} with {own.copies:.2f} copies per layer and "
        f"micro-step; {_others(curves, own)}"
    )
    return Chart(
        slug,
        finding,
        "Each point is a target imbalance, from 1 at the right to 1.5 at the left; "
        f"lower and further left is better. Planned anew for this report.{part}",
        f"Two falling curves of imbalance over copies. {finding}.",
        drawing,
        Numbers(
            ("policy and target", "imbalance", "copies"),
            [
                (p.label, p.imbalance, p.copies)
                for p in (own, *(p for points in curves.values() for p in points))
            ],
        ),
    )


def point(label: str, plans: Sequence[Plan]) -> Point:
    """Mean imbalance and copies of plans in a row."""
    tokens = np.stack([plan.rank_tokens() for plan in plans])
    copies = copied(np.stack([plan.replica_expert for plan in plans]))
    return Point(label, float(imbalance(tokens).mean()), float(copies.mean()))


def _others(curves: dict[str, list[Point]], own: Point) -> str:
    """Copies of each curve at the plans' own imbalance, between its points."""
    copies = {
        policy: np.interp(own.imbalance, [p.imbalance for p in points], [p.copies for p in points])
        for policy, points in curves.items()
    }
    return "there " + ", ".join(f"{policy} takes {value:.2f}" for policy, value in copies.items())


def _taken(run: PlansRun) -> int:
    """As many micro-steps as can be planned anew in seconds."""
    each = max(1, run.plans[0].load.size)
    return min(len(run.plans), max(1, MAX_LOADS // each))


def _point(policy: str, problem: StageProblem, target: float) -> Point:
    plans = list(POLICIES[policy](replace(problem, target=target)))
    return point(f"{policy}, target {target}", plans)
