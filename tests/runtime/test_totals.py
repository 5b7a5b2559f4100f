"""Counters by EP group: ended groups go, and there are never too many series."""

from dataclasses import replace

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.schedule import MicroStepSchedule
from foremoe.rpc.stage_figures import COLUMNS, StageFigures
from foremoe.rpc.status import RuntimeStatus
from foremoe.runtime.groups import EpGroup
from foremoe.runtime.metrics import DETAIL_SERIES, AllTotals, RuntimeCollector, Snapshot
from foremoe.runtime.stage import PlanningSummary, StageRecord
from foremoe.runtime.totals import (
    FIGURES_BYTES,
    KEEP_SECONDS,
    PLANNING_BUCKETS,
    PlanningTimes,
    Totals,
)
from foremoe.vocabulary import Stage
from tests.runtime.steps import GROUP

STATUS = RuntimeStatus("1", "id", 1, 0.0, 0, 0, (), ())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(name: str, layers: int = 3) -> StageRecord:
    """A stage that is planned and that all ranks have reported."""
    group = EpGroup(replace(GROUP, ep_group=name, layers=tuple(range(layers))))
    made = StageRecord(group, 1, Stage.UPDATE, (MicroStepSchedule(0, [["a"], ["b"]]),))
    made.summary = PlanningSummary(np.full(layers, 1.5), np.ones(layers), 1.0, 0.02)
    for rank in range(GROUP.ranks):
        report = MicroStepReport(0, "", np.ones(layers, np.int64), np.full(layers, 0.5), 7)
        made.reports.add(rank, report)
    return made


def note(totals: Totals, done: StageRecord) -> None:
    assert done.summary is not None
    totals.note_planned(done, done.summary)
    totals.note_reported(done)


def series(totals: AllTotals) -> list[str]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RuntimeCollector(Snapshot(STATUS, totals, {}, 0, False)))
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_groups_that_have_ended_lose_their_series_and_begin_anew() -> None:
    clock = Clock()
    totals = Totals(clock)
    note(totals, record("gone"))
    note(totals, record("streaming"))
    clock.now = KEEP_SECONDS
    assert any('"gone"' in line for line in series(totals.alive({"streaming"})))
    clock.now += KEEP_SECONDS
    left = series(totals.alive({"streaming"}))
    assert not any('"gone"' in line for line in left)
    assert (
        'foremoe_copied_bytes_total{ep_group="streaming",path="host",stage="update"} 14.0' in left
    )
    note(totals, record("gone"))
    note(totals, record("streaming"))
    again = series(totals.alive({"streaming"}))
    assert 'foremoe_copied_bytes_total{ep_group="gone",path="host",stage="update"} 14.0' in again
    assert (
        'foremoe_copied_bytes_total{ep_group="streaming",path="host",stage="update"} 28.0' in again
    )


def test_layers_and_ranks_of_many_groups_are_left_out_and_counted() -> None:
    totals = Totals()
    layers = 500
    one = series_with_details(totals, 1, layers)
    assert len(one) == 4 * layers + 2 * GROUP.ranks
    many = series_with_details(totals, 9, layers)
    assert DETAIL_SERIES - len(one) < len(many) <= DETAIL_SERIES
    left_out = [line for line in series(totals.alive(())) if "left_out" in line]
    assert left_out == [f"foremoe_series_left_out {9 * len(one) - len(many)}.0"]


def series_with_details(totals: Totals, groups: int, layers: int) -> list[str]:
    for index in range(groups):
        note(totals, record(f"g{index}", layers))
    return [line for line in series(totals.alive(())) if "layer=" in line or "rank=" in line]


def test_the_oldest_groups_figures_make_room() -> None:
    totals = Totals()
    figures = StageFigures(
        np.zeros((1, COLUMNS)),
        np.zeros((2, 1024, 1024), np.int64),  # 16 MiB
        0,
        np.zeros((1, 3)),
        None,
    )
    for name in ("a", "b", "a", "c", "d", "e"):
        made = record(name)
        assert made.summary is not None
        made.summary = replace(made.summary, figures=figures)
        note(totals, made)
        kept = {
            group
            for (group, _), one in totals.alive(()).items()
            if one.latest is not None and one.latest.figures is not None
        }
        assert len(kept) * figures.nbytes <= FIGURES_BYTES
    assert kept == {"c", "d", "e"}
    assert totals.alive(())["a", Stage.UPDATE].reported is not None


def test_planning_times_fall_into_their_buckets() -> None:
    times = PlanningTimes()
    for seconds in (PLANNING_BUCKETS[0], PLANNING_BUCKETS[0] + 1e-9, 1e9):
        times = times.with_seconds(seconds)
    counts = dict(times.cumulative())
    assert [counts[str(bound)] for bound in PLANNING_BUCKETS[:2]] == [1, 2]
    assert (counts[str(PLANNING_BUCKETS[-1])], counts["+Inf"]) == (2, 3)
