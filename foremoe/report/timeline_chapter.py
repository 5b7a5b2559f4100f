"""A chapter on a Chrome trace: of a simulated run, or of what the processes of a run recorded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foremoe.errors import InvalidInputError
from foremoe.report.chart import Chapter, Chart
from foremoe.report.planning_chart import planning_chart
from foremoe.report.timeline_chart import (
    PLANNING,
    is_compute,
    micro_step_windows,
    timeline_chart,
)
from foremoe.timeline.chrome_trace import Trace, moved
from foremoe.timeline.span import COMPUTE, SECOND, Span, StageOfRun

MARGIN = 0.1  # of a stage's length: planning that began earlier is not drawn with it


def timeline_chapter(path: Path, trace: Trace) -> Chapter:
    """All stages of a simulated run, the last ones of a recorded run; InvalidInputError."""
    stages = _stages(trace)
    if not stages:
        return Chapter("Timeline", str(path), (), _simulated(path, trace))
    charts: list[Chart] = []
    for of, spans in stages.items():
        charts.append(stage_timeline(of.stage, spans, f"{of.stage} of step {of.step}"))
        charts += _planning(of.stage, spans)
    left = len({span.of for spans in trace.processes.values() for span in spans}) - len(stages)
    more = f"{left} more recorded stages: open the trace in ui.perfetto.dev"
    ranks = sum(any(map(is_compute, spans)) for spans in trace.processes.values())
    return Chapter(
        f"Timeline: {ranks} ranks, as recorded", str(path), (), charts, [more] * bool(left)
    )


def shows_compute(trace: Trace) -> bool:
    """Whether any process recorded a compute stream; a daemon has none."""
    return any(map(is_compute, (span for spans in trace.processes.values() for span in spans)))


def stage_timeline(
    stage: str, spans: Sequence[Span], title: str, shown_part: str = "the whole stage"
) -> Chart:
    """What ran when in a recorded stage; planning long before it has a panel of its own."""
    spans = _from_its_start(spans)
    sooner = _planned_sooner(spans)
    drawn = [span for span in spans if span not in sooner]
    return timeline_chart(stage, drawn, title, shown_part, sorted(sooner, key=_start))


def _simulated(path: Path, trace: Trace) -> list[Chart]:
    for process, spans in trace.processes.items():
        if not any(map(is_compute, spans)):
            raise InvalidInputError(f"{path}: {process} has no track {' or '.join(COMPUTE)}")
    return [timeline_chart(stage, spans) for stage, spans in trace.processes.items()]


def _stages(trace: Trace) -> dict[StageOfRun, list[Span]]:
    """What was recorded of the last step, by stage; balanced runs of it, if there are any."""
    found: dict[StageOfRun, list[Span]] = {}
    for process, spans in trace.processes.items():
        for span in spans:
            if span.of is not None:
                found.setdefault(span.of, []).append(_of_rank(span, process))
    computed = [of for of, spans in found.items() if any(map(is_compute, spans))]
    last: dict[tuple[str, str], StageOfRun] = {}
    for of in sorted(computed, key=lambda of: (of.balanced, of.step)):
        last[of.ep_group, of.stage] = of
    return {of: found[of] for of in sorted(last.values())}


def _of_rank(span: Span, process: str) -> Span:
    """With its rank in the track's name, as in simulated runs."""
    return span._replace(track=f"{span.track} {process}") if process.startswith("rank ") else span


def _from_its_start(spans: Sequence[Span]) -> list[Span]:
    start = min(span.start_ns for span in spans if is_compute(span))
    return [moved(span, -start) for span in spans]


def _planned_sooner(spans: Sequence[Span]) -> set[Span]:
    """Planning that was done so long before that it would not be seen beside the stage."""
    inside = [span for span in spans if not _is_planning(span)]
    start, end = min(map(_start, inside)), max(span.end_ns for span in inside)
    earliest = start - MARGIN * (end - start)
    return {span for span in spans if _is_planning(span) and span.start_ns < earliest}


def _planning(stage: str, spans: Sequence[Span]) -> list[Chart]:
    """Each plan against the begin of its micro-step, if all were recorded."""
    planned = {span.micro_step: span for span in spans if _is_planning(span)}
    windows = micro_step_windows(spans)
    if not planned or planned.keys() != windows.keys():
        return []
    begin = min(map(_start, planned.values()))
    order = sorted(planned)
    seconds = np.array([(planned[m].end_ns - planned[m].start_ns) / SECOND for m in order])
    needed = np.array([(windows[m][0] - begin) / SECOND for m in order])
    chart = planning_chart(seconds, needed, f"As recorded: {stage}, daemon and ranks.")
    chart.slug = f"planning-{stage}"
    return [chart]


def _is_planning(span: Span) -> bool:
    return span.track == PLANNING


def _start(span: Span) -> int:
    return span.start_ns
