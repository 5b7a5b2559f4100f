"""One stage of one EP group: its schedule, its plans and what its ranks report."""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.imbalance import imbalance
from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.schedule import MicroStepSchedule
from foremoe.rpc.status import StageStatus
from foremoe.runtime.groups import EpGroup
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


@dataclass(frozen=True, slots=True)
class PlanningSummary:
    """Means over micro-steps and layers, and how long planning took."""

    imbalance_before: float
    imbalance_after: float
    replicas: float
    seconds: float


class StageReports:
    """What the ranks of a stage said: at most one report per rank and micro-step counts."""

    def __init__(self, micro_steps: int, layers: int, ranks: int) -> None:
        self._reported = np.zeros((ranks, micro_steps), bool)
        self._degraded = np.zeros(micro_steps, bool)
        self._computed_tokens = np.zeros((micro_steps, layers, ranks), np.int64)
        self._exposed_seconds = np.zeros(ranks)
        self.host_bytes = 0
        self.peer_bytes = 0
        self.gradient_bytes = 0

    @property
    def any_reported(self) -> bool:
        return bool(self._reported.any())

    @property
    def all_reported(self) -> bool:
        return bool(self._reported.all())

    @property
    def degraded(self) -> int:
        """Micro-steps that some rank ran without the plan."""
        return int(np.count_nonzero(self._degraded))

    @property
    def exposed_seconds(self) -> float:
        """Time compute waited for copies, summed over layers and micro-steps, on the worst rank."""
        return float(self._exposed_seconds.max())

    @property
    def measured_imbalance(self) -> float:
        """Mean over micro-steps and layers of what the ranks really computed."""
        return float(imbalance(self._computed_tokens).mean())

    def add(self, rank: int, report: MicroStepReport) -> None:
        """A second report of the same micro-step by the same rank changes nothing."""
        index = report.micro_step
        if self._reported[rank, index]:
            return
        self._reported[rank, index] = True
        self._degraded[index] |= report.degraded_reason != ""
        self._computed_tokens[index, :, rank] = report.computed_tokens
        self._exposed_seconds[rank] += float(report.exposed_seconds.sum())
        self.host_bytes += report.host_bytes
        self.peer_bytes += report.peer_bytes
        self.gradient_bytes += report.gradient_bytes


class StageRecord:
    """Everything the daemon holds about one stage of one EP group.

    cancelled: set when the step is released; the worker that plans the stage looks at it.
    load_bytes, kept_bytes: taken from the budget for planning, and until the release.
    """

    def __init__(
        self,
        group: EpGroup,
        step: int,
        stage: Stage,
        schedule: tuple[MicroStepSchedule, ...],
    ) -> None:
        shape = group.description
        layers, ranks = len(shape.layers), shape.ranks
        slots = layers * ranks * shape.spare_slots
        self.ep_group = shape.ep_group
        self.step = step
        self.stage = stage
        self.schedule = schedule
        self.plans: list[PlannedMicroStep] = []
        self.summary: PlanningSummary | None = None
        self.failed = False
        self.cancelled = threading.Event()
        self.reports = StageReports(len(schedule), layers, ranks)
        self.load_bytes = len(schedule) * layers * ranks * shape.num_experts * 8
        plan_bytes = slots * 4 + slots * ranks * 8 + layers * ranks * 8 + 1024
        names = sum(len(ids) for micro_step in schedule for ids in micro_step.ranks)
        home_bytes = layers * shape.num_experts * 4
        self.kept_bytes = len(schedule) * plan_bytes + home_bytes + names * 128

    @property
    def is_planned(self) -> bool:
        """Whether planning has ended, well or badly."""
        return self.summary is not None or self.failed

    def status(self) -> StageStatus:
        summary = self.summary or PlanningSummary(0.0, 0.0, 0.0, 0.0)
        return StageStatus(
            ep_group=self.ep_group,
            stage=self.stage,
            micro_steps=len(self.schedule),
            planned=len(self.plans),
            imbalance_before=summary.imbalance_before,
            imbalance_after=summary.imbalance_after,
            replicas=summary.replicas,
            degraded=self.reports.degraded,
            planning_seconds=summary.seconds,
        )
