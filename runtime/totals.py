"""What every EP group has done since it began: the daemon's counters, which outlive steps."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from foremoe.rpc.status import PathStatus, StageDetail
from foremoe.runtime.stage import PlanningSummary, StageRecord
from foremoe.vocabulary import Stage

FIGURES_BYTES = 64 << 20  # of all groups together; the oldest go first
PLANNING_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
KEEP_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class PlanningTimes:
    """A histogram of seconds per stage; counts has one more entry than PLANNING_BUCKETS."""

    counts: tuple[int, ...] = (0,) * (len(PLANNING_BUCKETS) + 1)
    seconds: float = 0.0

    def with_seconds(self, seconds: float) -> "PlanningTimes":
        place = sum(seconds > bound for bound in PLANNING_BUCKETS)
        counts = tuple(count + (i == place) for i, count in enumerate(self.counts))
        return PlanningTimes(counts, self.seconds + seconds)

    def cumulative(self) -> list[tuple[str, int]]:
        """As Prometheus has it: upper bounds and how many were not above."""
        bounds = [*map(str, PLANNING_BUCKETS), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class StageTotals:
    """One EP group and kind of stage. Never changed, only replaced, so any thread may read it.

    computed_tokens, rank_exposed_seconds: ``[P]``; layer_exposed_seconds: ``[L]``.
    planned, reported: the last stage that was planned, and that all ranks reported.
    """

    computed_tokens: NDArray[np.int64]
    rank_exposed_seconds: NDArray[np.float64]
    layer_exposed_seconds: NDArray[np.float64]
    layers: tuple[int, ...]
    stages: int = 0
    micro_steps: int = 0
    seconds: float = 0.0
    planning: PlanningTimes = PlanningTimes()
    planning_failures: int = 0
    agreement_misses: int = 0
    degraded: Mapping[str, int] = field(default_factory=Counter)
    paths: tuple[PathStatus, ...] = ()
    planned: StageDetail | None = None
    reported: StageDetail | None = None

    @classmethod
    def empty(cls, record: StageRecord) -> "StageTotals":
        layers, ranks = record.reports.exposed_seconds.shape
        nothing = tuple(PathStatus(path.path, 0, 0) for path in record.reports.paths())
        return cls(
            np.zeros(ranks, np.int64),
            np.zeros(ranks),
            np.zeros(layers),
            record.layers,
            paths=nothing,
        )

    @property
    def latest(self) -> StageDetail | None:
        """The stage to look at: what ranks have reported, or else what is planned."""
        return self.reported or self.planned

    def with_plan(self, record: StageRecord, summary: PlanningSummary) -> "StageTotals":
        planned = record.detail()
        if self.reported is not None:  # that one is shown until this one is reported
            planned = replace(planned, figures=None)
        return replace(self, planning=self.planning.with_seconds(summary.seconds), planned=planned)

    @property
    def figures_bytes(self) -> int:
        """What the figures of the stage to look at take."""
        latest = self.latest
        return 0 if latest is None or latest.figures is None else latest.figures.nbytes

    def without_figures(self) -> "StageTotals":
        planned, reported = (
            None if one is None else replace(one, figures=None)
            for one in (self.planned, self.reported)
        )
        return replace(self, planned=planned, reported=reported)

    def with_reports(self, record: StageRecord) -> "StageTotals":
        reports = record.reports
        return replace(
            self,
            computed_tokens=self.computed_tokens + reports.computed_tokens.sum(axis=(0, 1)),
            rank_exposed_seconds=self.rank_exposed_seconds + reports.rank_exposed_seconds,
            layer_exposed_seconds=self.layer_exposed_seconds + reports.exposed_seconds.sum(axis=1),
            stages=self.stages + 1,
            micro_steps=self.micro_steps + reports.reported,
            seconds=self.seconds + float(reports.seconds.max()),
            agreement_misses=self.agreement_misses + reports.agreement_misses,
            degraded=Counter(self.degraded) + Counter(reports.degraded_reasons),
            paths=tuple(
                PathStatus(now.path, past.copies + now.copies, past.copied_bytes + now.copied_bytes)
                for past, now in zip(self.paths, reports.paths(), strict=True)
            ),
            reported=record.detail() if reports.all_reported else self.reported,
        )


class Totals:
    """The totals of all EP groups that are alive: a plan stream is open, or was of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._stages: dict[tuple[str, Stage], StageTotals] = {}
        self._alive_at: dict[str, float] = {}
        self._clock = clock

    def note_planned(self, record: StageRecord, summary: PlanningSummary) -> None:
        self._put(record, self._get(record).with_plan(record, summary))

    def note_failed(self, record: StageRecord) -> None:
        """Its planning broke off."""
        totals = self._get(record)
        self._put(record, replace(totals, planning_failures=totals.planning_failures + 1))

    def note_reported(self, record: StageRecord) -> None:
        """Its reports are all there, or no more will come."""
        self._put(record, self._get(record).with_reports(record))

    def alive(self, streaming: Collection[str]) -> dict[tuple[str, Stage], StageTotals]:
        """All totals, after forgetting groups that have ended.

        streaming: the groups with a plan stream. One without for KEEP_SECONDS has ended; should it
        come back, it counts from zero, as after a restart.
        """
        now = self._clock()
        for name in list(self._alive_at):
            if name in streaming:
                self._alive_at[name] = now
            elif now - self._alive_at[name] > KEEP_SECONDS:
                del self._alive_at[name]
        self._stages = {key: kept for key, kept in self._stages.items() if key[0] in self._alive_at}
        return dict(self._stages)

    def _get(self, record: StageRecord) -> StageTotals:
        return self._stages.get((record.ep_group, record.stage)) or StageTotals.empty(record)

    def _put(self, record: StageRecord, totals: StageTotals) -> None:
        key = (record.ep_group, record.stage)
        self._stages.pop(key, None)  # the newest is last
        self._stages[key] = totals
        held = sum(one.figures_bytes for one in self._stages.values())
        for oldest, one in list(self._stages.items()):
            if held <= FIGURES_BYTES:
                break
            held -= one.figures_bytes
            self._stages[oldest] = one.without_figures()
        self._alive_at[record.ep_group] = self._clock()
