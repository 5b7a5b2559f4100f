"""A chapter on an EP group of a daemon, from its status."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter

import numpy as np

from foremoe.errors import NotReadyError, UnknownError
from foremoe.report.chart import Chapter, Chart, Fact, Numbers, new_drawing
from foremoe.report.daemon_stage import stage_charts
from foremoe.report.heatmap import heatmap_of
from foremoe.report.style import ACCENT, FAINT, INK, MUTED, horizontal_grid
from foremoe.rpc.status import EpGroupStatus, RuntimeStatus, StageDetail, StageStatus


def daemon_chapter(status: RuntimeStatus, source: str, ep_group: str | None = None) -> Chapter:
    """source: its address, or the file that it is from. ep_group: None for the worst balanced one.

    Stages have all figures where ``status`` comes with their worst micro-step and figures.

    Raises NotReadyError while no stage has been planned, UnknownError for a group not there.
    """
    named = [group for group in status.ep_groups if ep_group in (None, group.ep_group)]
    if ep_group is not None and not named:
        known = ", ".join(group.ep_group for group in status.ep_groups[:8]) or "none"
        raise UnknownError(f"{source}: EP group {ep_group[:80]!r} is not among its groups: {known}")
    group = max(named, key=attrgetter("worst_imbalance"), default=None)
    if group is None or not group.latest:
        raise NotReadyError(f"{source}: the daemon has planned no stage yet; try again later")
    chapter = _chapter(group, _stages(status, group.ep_group), source)
    others = [one.ep_group for one in status.ep_groups if one is not group]
    if ep_group is None and others:
        more = f"{len(others)} more EP groups, which are balanced no worse: --ep-group {others[0]}"
        chapter = replace(chapter, missing=[*chapter.missing, more])
    return chapter


def _stages(status: RuntimeStatus, ep_group: str) -> list[tuple[int, StageStatus]]:
    return [
        (step.step, stage)
        for step in (*status.released, *status.steps)
        for stage in step.stages
        if stage.ep_group == ep_group and stage.planned
    ]


def _chapter(
    group: EpGroupStatus, stages: Sequence[tuple[int, StageStatus]], source: str
) -> Chapter:
    charts, missing = list[Chart](), list[str]()
    for detail in group.latest:
        more, lines = stage_charts(detail, group)
        charts += [*_stage(detail), *more]
        missing += lines
    if timed := [(step, stage) for step, stage in stages if stage.reported and stage.seconds > 0]:
        charts.append(_planning(timed))
    last = group.latest[-1].status
    return Chapter(
        f"EP group {group.ep_group}: {group.ranks} ranks, {group.spare_slots} spare slots",
        f"daemon, {source}",
        [
            Fact(
                "imbalance-before",
                f"imbalance before, {last.stage}",
                last.imbalance_before,
                f"{last.imbalance_before:.3f}",
            ),
            Fact("imbalance-after", "planned", last.imbalance_after, f"{last.imbalance_after:.4f}"),
            Fact("degraded", "micro-steps without replicas", last.degraded, str(last.degraded)),
        ],
        charts,
        missing,
    )


def _stage(detail: StageDetail) -> Iterator[Chart]:
    yield _layers(detail)
    if detail.worst_micro_step is not None:
        stage = detail.status.stage
        yield heatmap_of(
            detail.worst_micro_step,
            [layer.layer for layer in detail.layers],
            f"heatmap-{stage}",
            f"{str(stage).capitalize()} of step {detail.step} at its worst",
        )


def _layers(detail: StageDetail) -> Chart:
    """Every layer's imbalance, planned and measured."""
    status = detail.status
    rows = np.arange(len(detail.layers))
    before = [layer.imbalance_before for layer in detail.layers]
    after = [layer.imbalance_after for layer in detail.layers]
    measured = [layer.imbalance_measured for layer in detail.layers]
    drawing = new_drawing(3.0)
    axes = drawing.subplots()
    axes.vlines(rows, after, before, color=FAINT, linewidth=1)
    axes.plot(rows, before, "o", color=MUTED, label="before", gid="before")
    axes.plot(rows, after, "o", color=ACCENT, label="planned", gid="after")
    if status.reported:
        axes.plot(rows, measured, "x", color=INK, label="measured", gid="measured")
    shown = rows[:: -(-len(rows) // 32)]
    axes.set_xticks(shown, [str(detail.layers[row].layer) for row in shown])
    axes.set_xlabel("layer")
    axes.set_ylabel("imbalance")
    axes.set_ylim(min(0.98, 1 - 0.05 * (max(before) - 1)))
    horizontal_grid(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.14), ncols=3)
    name = f"{str(status.stage).capitalize()} of step {detail.step}"
    finding = (
        f"{name}: imbalance {status.imbalance_before:.2f} before, "
        f"{status.imbalance_after:.3f} planned"
    )
    caption = "Mean over the stage's micro-steps."
    columns: tuple[str, ...] = ("layer", "before", "planned")
    if status.reported:
        finding += f", {status.imbalance_measured:.3f} measured"
        caption += " Measured: pairs that the ranks say they computed."
        columns += ("measured", "exposed ms")
    return Chart(
        f"layers-{status.stage}",
        finding,
        caption,
        f"Dots for {len(rows)} layers. {finding}.",
        drawing,
        Numbers(
            columns,
            [
                (
                    layer.layer,
                    layer.imbalance_before,
                    layer.imbalance_after,
                    layer.imbalance_measured,
                    1e3 * layer.exposed_seconds,
                )[: len(columns)]
                for layer in detail.layers
            ],
        ),
    )


def _planning(stages: Sequence[tuple[int, StageStatus]]) -> Chart:
    """A micro-step's plan is made while the one before runs, so its time is the deadline."""
    names = [f"{step} {stage.stage}" for step, stage in stages]
    planning = np.array([stage.planning_seconds / stage.planned for _, stage in stages])
    running = np.array([stage.seconds / stage.reported for _, stage in stages])
    places = np.arange(len(stages))
    drawing = new_drawing(2.8)
    axes = drawing.subplots()
    axes.vlines(places, 1e3 * planning, 1e3 * running, color=FAINT, linewidth=1)
    axes.plot(places, 1e3 * running, "o", color=MUTED, label="micro-step (deadline)", gid="needed")
    axes.plot(places, 1e3 * planning, "o", color=ACCENT, label="its plan", gid="planning")
    axes.set_yscale("log")
    shown = places[:: -(-len(places) // 16)]
    axes.set_xticks(shown, [names[place].replace(" ", "\n") for place in shown])
    axes.set_ylabel("ms, mean")
    horizontal_grid(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=2)
    worst = int((planning / running).argmax())
    finding = (
        f"A plan takes {1e3 * planning.mean():.1f} ms; at the worst "
        f"{planning[worst] / running[worst]:.1%} of the micro-step that hides it"
    )
    return Chart(
        "planning",
        finding,
        "By step and stage: planning of one micro-step, and a micro-step on the slowest rank, "
        "during which the next one is planned.",
        f"Two rows of dots over {len(stages)} stages. {finding}.",
        drawing,
        Numbers(
            ("step and stage", "planning ms", "micro-step ms"),
            [
                (name, float(1e3 * took), float(1e3 * ran))
                for name, took, ran in zip(names, planning, running, strict=True)
            ],
        ),
    )
