"""One stage of one EP group: its schedule, its plans and what its ranks report."""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.schedule import MicroStepSchedule
from foremoe.rpc.stage_figures import StageFigures
from foremoe.rpc.status import LayerStatus, StageDetail, StageStatus
from foremoe.rpc.worst_micro_step import WorstMicroStep
from foremoe.runtime.groups import EpGroup
from foremoe.runtime.reports import StageReports
from foremoe.runtime.stage_figures import figures_bytes
from foremoe.timeline.span import SECOND
from foremoe.vocabulary import Stage


@dataclass(frozen=True, slots=True, eq=False)
class PlannedMicroStep:
    """A plan without the load it was made for.

    home: int32 ``[L, E]``; replica_expert: int32 ``[L, P, R]``;
    replica_tokens: int64 ``[L, P_source, P, R]``; digest: planner.plan.placement_digest.
    """

    micro_step: int
    home: NDArray[np.int32]
    replica_expert: NDArray[np.int32]
    replica_tokens: NDArray[np.int64]
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class PlanningSummary:
    """What planning gained, and how long it took.

    imbalance_before, imbalance_after: float64 ``[L]``, means over micro-steps.
    replicas: mean over micro-steps and layers. worst, figures: None where there are no plans.
    """

    imbalance_before: NDArray[np.float64]
    imbalance_after: NDArray[np.float64]
    replicas: float
    seconds: float
    worst: WorstMicroStep | None = None
    figures: StageFigures | None = None

    @classmethod
    def empty(cls, layers: int, seconds: float = 0.0) -> "PlanningSummary":
        """Of no plans at all."""
        return cls(np.zeros(layers), np.zeros(layers), 0.0, seconds)


def stage_bytes(
    shape: RankRegistration, schedule: tuple[MicroStepSchedule, ...]
) -> tuple[int, int]:
    """Bytes that a stage of the group takes: while it is planned, and until its release."""
    micro_steps, layers, ranks = len(schedule), len(shape.layers), shape.ranks
    loads = ranks + shape.moves_homes  # homes are chosen from the load of all ranks together
    slots = layers * ranks * shape.spare_slots
    plan_bytes = slots * 4 + slots * ranks * 8 + 1024
    report_bytes = StageReports.stored_bytes(micro_steps, layers, ranks)
    names = sum(len(ids) for micro_step in schedule for ids in micro_step.ranks)
    home_bytes = layers * shape.num_experts * 4
    worst_bytes = layers * (shape.num_experts * 8 + 16)  # its plan is among the others
    drawn = figures_bytes(micro_steps, layers, ranks, shape.num_experts)
    return (
        micro_steps * layers * loads * shape.num_experts * 8,
        micro_steps * plan_bytes + report_bytes + home_bytes + worst_bytes + drawn + names * 128,
    )


class StageRecord:
    """Everything the daemon holds about one stage of one EP group.

    cancelled: set when the step is released; the worker that plans the stage looks at it.
    load_bytes, kept_bytes: as ``stage_bytes`` says. submitted_unix_ns, submitted_ns: when its
    schedule came, the latter by ``time.monotonic_ns``.
    """

    def __init__(
        self,
        group: EpGroup,
        step: int,
        stage: Stage,
        schedule: tuple[MicroStepSchedule, ...],
    ) -> None:
        shape = group.description
        self.ep_group = shape.ep_group
        self.layers = shape.layers
        self.step = step
        self.stage = stage
        self.schedule = schedule
        self.plans: list[PlannedMicroStep] = []
        self.summary: PlanningSummary | None = None
        self.failed = False
        self.cancelled = threading.Event()
        self.submitted_unix_ns = time.time_ns()
        self.submitted_ns = time.monotonic_ns()
        self.reports = StageReports(len(schedule), len(shape.layers), shape.ranks)
        self.load_bytes, self.kept_bytes = stage_bytes(shape, schedule)

    @property
    def is_planned(self) -> bool:
        """Whether planning has ended, well or badly."""
        return self.summary is not None or self.failed

    def status(self) -> StageStatus:
        summary = self.summary or PlanningSummary.empty(len(self.layers))
        reports = self.reports
        return StageStatus(
            ep_group=self.ep_group,
            stage=self.stage,
            micro_steps=len(self.schedule),
            planned=len(self.plans),
            imbalance_before=float(summary.imbalance_before.mean()),
            imbalance_after=float(summary.imbalance_after.mean()),
            replicas=summary.replicas,
            degraded=reports.degraded,
            planning_seconds=summary.seconds,
            reported=reports.reported,
            seconds=float(reports.seconds.max()),
            exposed_seconds=float(reports.rank_exposed_seconds.max()),
            imbalance_measured=float(reports.layer_imbalance.mean()),
            degraded_reasons=reports.degraded_reasons,
            agreement_misses=reports.agreement_misses,
            paths=reports.paths(),
            planning_failed=self.failed,
        )

    def detail(self) -> StageDetail:
        """The stage by layer and rank."""
        summary = self.summary or PlanningSummary.empty(len(self.layers))
        columns = zip(
            self.layers,
            summary.imbalance_before.tolist(),
            summary.imbalance_after.tolist(),
            self.reports.layer_imbalance.tolist(),
            self.reports.exposed_seconds.sum(axis=1).tolist(),
            strict=True,
        )
        return StageDetail(
            step=self.step,
            status=self.status(),
            layers=tuple(LayerStatus(*row) for row in columns),
            busiest_ranks=self.reports.busiest_ranks() if self.reports.any_reported else (),
            worst_micro_step=summary.worst,
            figures=self._figures(),
        )

    def _figures(self) -> StageFigures | None:
        """With what ranks have said until now."""
        if self.summary is None or self.summary.figures is None:
            return None
        figures, reports = self.summary.figures, self.reports
        told = reports.began_unix_ns[: len(figures.imbalance)]
        seconds = figures.seconds.copy()
        seconds[:, 2] = np.where(told > 0, (told - self.submitted_unix_ns) / SECOND, np.nan)
        return replace(figures, seconds=seconds, timelines=dict(reports.timelines))
