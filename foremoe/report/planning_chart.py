"""Planner time against its deadline: the plan of micro-step m is needed when m - 1 ends."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from foremoe.report.chart import Chart, Numbers, new_drawing
from foremoe.report.style import ACCENT, MUTED, RED, horizontal_grid, whole_numbers


def planning_chart(
    planning_seconds: NDArray[np.float64],
    needed_seconds: NDArray[np.float64],
    how: str,
    slug: str = "planning",
    ready: NDArray[np.float64] | None = None,
    when: str = "",
) -> Chart:
    """When each plan is there, and when its micro-step begins.

    planning_seconds: float64 ``[M]``. needed_seconds: float64 ``[M]``, when each micro-step begins
    since the schedule is there. ready: float64 ``[M]``, when each plan is made; None where one core
    plans micro-step after micro-step. how: where they are from. when: how the finding begins.
    """
    ready = np.cumsum(planning_seconds) if ready is None else ready
    late = np.flatnonzero(ready[1:] > needed_seconds[1:]) + 1
    drawing = new_drawing(3.0)
    axes = drawing.subplots()
    micro_steps = np.arange(len(ready))
    axes.plot(micro_steps, 1e3 * needed_seconds, color=MUTED, label="deadline").pop().set_gid(
        "needed"
    )
    axes.plot(micro_steps, 1e3 * ready, color=ACCENT, label="plan is ready").pop().set_gid("ready")
    if len(late):
        axes.scatter(late, 1e3 * ready[late], s=14, color=RED, label="late").set_gid("late")
    _finish(axes, len(ready), 1e3 * float(max(ready.max(), needed_seconds.max())))
    finding = when + _finding(ready, needed_seconds, len(late))
    finding = finding[0].upper() + finding[1:]
    return Chart(
        slug,
        finding,
        "Time since the schedule arrived. A plan's deadline is the end of the micro-step before; "
        f"the first plan has none but haste. {how}",
        f"Two rising lines over {len(ready)} micro-steps. {finding}.",
        drawing,
        Numbers(
            ("micro-step", "planning ms", "ready ms", "deadline ms"),
            [
                (m, float(1e3 * planning_seconds[m]), float(1e3 * ready[m]), float(1e3 * needed))
                for m, needed in enumerate(needed_seconds)
            ],
        ),
    )


def _finding(ready: NDArray[np.float64], needed: NDArray[np.float64], late: int) -> str:
    first = f"the first plan is there after {1e3 * ready[0]:.1f} ms"
    if len(ready) == 1:
        return first
    if late:
        return f"{first}; {late} of the {len(ready) - 1} others come after their deadline"
    ahead = needed[-1] / ready[-1]
    return f"{first}; all others come before their deadlines, the last {ahead:.0f}x sooner"


def _finish(axes: Axes, micro_steps: int, highest: float) -> None:
    axes.set_xlabel("micro-step")
    axes.set_ylabel("ms since the schedule")
    axes.set_ylim(-0.03 * highest)  # a line along the axis is seen whole
    axes.set_xlim(-0.5, micro_steps - 0.5)
    whole_numbers(axes.xaxis)
    horizontal_grid(axes)
    axes.legend(loc="upper left")
