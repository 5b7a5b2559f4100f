"""What a daemon keeps of a stage, as figures; and in a line each what it cannot tell."""

import numpy as np

from foremoe.planner.policies import warm_up
from foremoe.planner.problem import StageProblem, Topology
from foremoe.report.chart import Chart
from foremoe.report.frontier import CURVES, Point, frontier_chart
from foremoe.report.imbalance_chart import bands_chart
from foremoe.report.planning_chart import planning_chart
from foremoe.report.timeline_chapter import stage_timeline
from foremoe.report.timeline_chart import PLANNING, is_compute
from foremoe.report.traffic import traffic_chart
from foremoe.rpc.stage_figures import StageFigures
from foremoe.rpc.status import EpGroupStatus, StageDetail
from foremoe.timeline.span import NO_LAYER, SECOND, Span


def stage_charts(detail: StageDetail, group: EpGroupStatus) -> tuple[list[Chart], list[str]]:
    """Of the last stage of its kind: charts, and what is missing."""
    figures, name = detail.figures, f"{detail.status.stage} of step {detail.step}"
    if figures is None:
        why = "is not planned" if not detail.status.planned else "the daemon keeps no figures of it"
        return [], [f"micro-steps, traffic and timeline of the {name}: {why}"]
    charts, missing = _planned(detail, figures, group.spare_slots, name)
    timeline = _timeline(detail, figures, group.ranks, name)
    for more, lines in (_deadlines(detail, figures, name), timeline):
        charts += more
        missing += lines
    return charts, missing


def _planned(
    detail: StageDetail, figures: StageFigures, spare_slots: int, name: str
) -> tuple[list[Chart], list[str]]:
    """What the plans tell, whether or not they were run."""
    stage, when, missing = detail.status.stage, f"{name.capitalize()}: ", list[str]()
    bands = (figures.before, figures.after, len(detail.layers))
    charts = [bands_chart(*bands, f"imbalance-{stage}", "no replicas", when)]
    if (left := detail.status.planned - len(figures.imbalance)) > 0:
        missing.append(
            f"the last {left} micro-steps of the {name}: the daemon keeps the first ones"
        )
    if figures.sample is None:
        missing.append(f"balance against copies of the {name}: its loads are too large to keep any")
    else:
        charts.append(_frontier(figures, spare_slots, stage, when))
    if figures.traffic is None:
        missing.append(f"traffic of the {name}: its EP group has too many ranks to keep it")
    else:
        slug = f"traffic-{stage}"
        charts.append(traffic_chart(figures.traffic[0], figures.traffic[1], slug, when))
    return charts, missing


def _frontier(figures: StageFigures, spare_slots: int, stage: str, when: str) -> Chart:
    sample = figures.sample
    assert sample is not None, "the caller has looked"
    micro_steps, layers, ranks, _ = sample.load.shape
    warm_up(CURVES)
    problem = StageProblem(
        load=sample.load.astype(np.int64),
        home=sample.home,
        mini_batch=np.zeros(micro_steps, np.int32),
        topology=Topology(ranks, sample.ranks_per_node),
        spare_slots=spare_slots,
    )
    named = ", ".join(map(str, sample.layers[:8])) + (", ..." if layers > 8 else "")
    part = f" The first {micro_steps} micro-steps of {layers} layers ({named})."
    own = Point("these plans", sample.imbalance_after, sample.copies)
    return frontier_chart(problem, own, f"frontier-{stage}", part, f"{when}the plans")


def _deadlines(
    detail: StageDetail, figures: StageFigures, name: str
) -> tuple[list[Chart], list[str]]:
    told = np.isfinite(figures.seconds[:, 2])
    if not told.any():
        return [], [f"planner against its deadline in the {name}: no rank has said when it began"]
    began, ready, needed = figures.seconds[told].T
    slug, how = f"planning-{detail.status.stage}", "As the daemon and the first rank say."
    when = f"{name.capitalize()}: "
    return [planning_chart(ready - began, needed, how, slug, ready, when)], []


def _timeline(
    detail: StageDetail, figures: StageFigures, ranks: int, name: str
) -> tuple[list[Chart], list[str]]:
    ran = [span for rank, told in figures.timelines.items() for span in told.spans(rank)]
    if not any(map(is_compute, ran)):
        return [], [f"timeline of the {name}: no rank has reported what ran when"]
    end = max(span.end_ns for span in ran)
    spans = [*ran, *(span for span in _planning(figures) if span.start_ns < end)]
    count, micro_steps = 1 + max(span.micro_step for span in ran), detail.status.micro_steps
    part = "the whole stage" if count == micro_steps else f"first {count} of {micro_steps}"
    chart, missing = stage_timeline(detail.status.stage, spans, name, part), list[str]()
    if ranks > len(figures.timelines):
        missing.append(f"timelines of {ranks - len(figures.timelines)} more ranks in the {name}")
    if count < micro_steps:
        missing.append(
            f"timeline of the last {micro_steps - count} micro-steps of the {name}: ranks report "
            "the first ones"
        )
    return [chart], missing


def _planning(figures: StageFigures) -> list[Span]:
    """Each plan's making, in Unix time."""
    return [
        Span(
            PLANNING,
            f"plan of micro-step {index}",
            figures.submitted_unix_ns + round(began * SECOND),
            figures.submitted_unix_ns + round(ended * SECOND),
            index,
            NO_LAYER,
        )
        for index, (began, ended) in enumerate(figures.seconds[:, :2].tolist())
    ]
