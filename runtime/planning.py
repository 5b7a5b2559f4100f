"""Planning: from a stage's schedule and foresight to plans, on worker threads."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import InvalidInputError, UnknownError
from foremoe.planner.cost import CostModel
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan, home_tokens, placement_digest
from foremoe.planner.policies import Policy
from foremoe.planner.problem import StageProblem, Topology
from foremoe.rpc.foresight import UploadHeader
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.worst_micro_step import WorstMicroStep
from foremoe.runtime.groups import EpGroup
from foremoe.runtime.stage import PlannedMicroStep, PlanningSummary, StageRecord
from foremoe.runtime.stage_figures import stage_figures
from foremoe.runtime.step import Step
from foremoe.runtime.step_homes import StepHomes
from foremoe.timeline.recorder import SpanRecorder
from foremoe.timeline.span import SECOND, StageOfRun

NICENESS = 5  # more than the event loop's, of threads that plan

Histogram = NDArray[np.uint32]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class PlanningJob:
    """All a worker needs; nothing in it changes while the worker reads it.

    histograms: of every sequence by micro-step and rank, uint32 ``[layers of the foresight, E]``.
    rows: the EP group's layers as rows of the histograms, int64 ``[L]``.
    homes: those of the step, chosen by whichever of its stages is planned first.
    """

    record: StageRecord
    group: RankRegistration
    histograms: list[list[tuple[Histogram, ...]]]
    rows: NDArray[np.int64]
    homes: StepHomes
    target: float | None
    cost: CostModel | None


class PlanSink(Protocol):
    """Who gets the plans of a job; planning ends with exactly one of finish and fail."""

    def publish(self, record: StageRecord, plan: PlannedMicroStep) -> None: ...
    def finish_planning(self, record: StageRecord, summary: PlanningSummary) -> None: ...
    def fail_planning(self, record: StageRecord, error: BaseException) -> None: ...


def planning_job(
    record: StageRecord,
    group: EpGroup,
    step: Step,
    target: float | None,
    cost: CostModel | None,
) -> PlanningJob:
    """Look up all that the record's schedule names; ``step`` is left as it is.

    Raises UnknownError for a sequence without foresight, InvalidInputError when the foresight is
    of another model than the group's.
    """
    sequences = step.foresight.sequences
    for index, micro_step in enumerate(record.schedule):
        for rank, ids in enumerate(micro_step.ranks):
            for sequence_id in ids:
                if sequence_id not in sequences:
                    raise UnknownError(
                        f"micro_steps[{index}].ranks[{rank}]: sequence {sequence_id[:80]!r} has no "
                        f"foresight in step {record.step}; upload it before the schedule"
                    )
    histograms = [
        [tuple(sequences[sequence_id].histogram for sequence_id in ids) for ids in micro_step.ranks]
        for micro_step in record.schedule
    ]
    rows = layer_rows(step.foresight.header, group.description)
    homes = step.homes.get(record.ep_group)
    if homes is None:
        homes = StepHomes(group.description, group.home, histograms, rows)
    return PlanningJob(record, group.description, histograms, rows, homes, target, cost)


def layer_rows(header: UploadHeader, group: RankRegistration) -> NDArray[np.int64]:
    """The group's layers as rows of the foresight; raises as ``planning_job``."""
    if header.num_experts != group.num_experts:
        raise InvalidInputError(
            f"step {header.step}: its foresight has {header.num_experts} experts per layer, "
            f"EP group {group.ep_group!r} has {group.num_experts}"
        )
    row_of = {layer: row for row, layer in enumerate(header.layers)}
    missing = [layer for layer in group.layers if layer not in row_of]
    if missing:
        raise InvalidInputError(
            f"step {header.step}: its foresight has no layer {missing[0]}, which EP group "
            f"{group.ep_group!r} computes"
        )
    return np.array([row_of[layer] for layer in group.layers], np.int64)


def stage_problem(job: PlanningJob) -> StageProblem:
    """The planner's question for a job: loads added up from histograms, the step's homes."""
    group, schedule = job.group, job.record.schedule
    layers, experts = len(group.layers), group.num_experts
    load = np.zeros((len(schedule), layers, group.ranks, experts), np.int64)
    for micro_step, ranks in enumerate(job.histograms):
        for rank, histograms in enumerate(ranks):
            if histograms:  # added up where they lie together: `load` has the ranks between
                total = histograms[0].astype(np.int64)
                for histogram in histograms[1:]:
                    total += histogram
                load[micro_step, :, rank] = total[job.rows]
    return StageProblem(
        load=load,
        home=job.homes.choose(),
        mini_batch=np.array([micro_step.mini_batch for micro_step in schedule], np.int32),
        topology=Topology(group.ranks, group.ranks_per_node),
        spare_slots=group.spare_slots,
        target=job.target,
        cost=job.cost,
    )


class PlanningRun:
    """One job being planned: iterate for the plans, then ask for the summary."""

    def __init__(self, job: PlanningJob, policy: Policy, spans: SpanRecorder | None = None) -> None:
        self._job = job
        self._policy = policy
        self._spans = spans or SpanRecorder()
        self._plans: list[Plan] = []
        self._times: list[tuple[int, int]] = []
        self._seconds = 0.0

    def __iter__(self) -> Iterator[PlannedMicroStep]:
        """Each plan as soon as it is made; ends early when the step is released."""
        job = self._job
        layer_ids = np.array(job.group.layers, np.int32)
        record = job.record
        of = StageOfRun(record.ep_group, record.step, str(record.stage))
        begin, started_ns = time.perf_counter(), time.monotonic_ns()
        for index, plan in enumerate(self._policy(stage_problem(job))):
            if job.record.cancelled.is_set():
                return
            digest = placement_digest(
                job.record.step, job.record.stage, index, layer_ids, plan.home, plan.replica_expert
            )
            self._plans.append(plan)
            self._times.append((started_ns, time.monotonic_ns()))
            self._seconds = time.perf_counter() - begin
            self._spans.add_plan(of, index, started_ns)
            yield PlannedMicroStep(
                index, plan.home, plan.replica_expert, plan.replica_tokens, digest
            )
            started_ns = time.monotonic_ns()

    def summary(self) -> PlanningSummary:
        """What planning gained; reckoned after the last plan is out, so that no plan waits."""
        plans, record = self._plans, self._job.record
        layers = len(self._job.group.layers)
        if not plans:
            return PlanningSummary.empty(layers, self._seconds)
        before = np.stack([imbalance(home_tokens(plan.load, plan.home)) for plan in plans])
        after = np.stack([imbalance(plan.rank_tokens()) for plan in plans])
        replicas = sum(plan.replicas() for plan in plans) / len(plans) / layers
        return PlanningSummary(
            before.mean(axis=0),
            after.mean(axis=0),
            replicas,
            self._seconds,
            _worst(plans, before, after),
            stage_figures(
                self._job.group,
                record.submitted_unix_ns,
                self._planning(),
                plans,
                before,
                after,
            ),
        )

    def _planning(self) -> NDArray[np.float64]:
        """When planning of each began and ended, in seconds since the schedule: ``[M, 2]``."""
        times = np.array(self._times, np.int64)
        return (times - self._job.record.submitted_ns) / SECOND


def _worst(
    plans: list[Plan], before: NDArray[np.float64], after: NDArray[np.float64]
) -> WorstMicroStep:
    """Of ``plans`` and their imbalances ``[M, L]``."""
    index = int(before.mean(axis=1).argmax())
    plan = plans[index]
    return WorstMicroStep(
        index,
        plan.load.sum(axis=1),
        plan.home,
        plan.replica_expert,
        before[index].copy(),
        after[index].copy(),
    )


def _give_way() -> None:
    """On Linux a thread has a priority of its own: whoever waits for an answer goes first."""
    if sys.platform == "linux":
        os.nice(NICENESS)


def _started_threads(count: int) -> ThreadPoolExecutor:
    """An executor whose threads run already: later there may be no memory for one."""
    executor = ThreadPoolExecutor(count, "foremoe-planning", initializer=_give_way)
    all_started = threading.Barrier(count)
    for started in [executor.submit(all_started.wait) for _ in range(count)]:
        started.result()
    return executor


class PlanningPool:
    """Worker threads; the kernels run without the GIL.

    ``post`` hands a call to the thread that owns the sink and keeps the order of calls.
    """

    def __init__(
        self,
        policy: Policy,
        workers: int,
        post: Callable[[Callable[[], None]], object],
        spans: SpanRecorder | None = None,
    ) -> None:
        self._policy = policy
        self._spans = spans
        self._post = post
        self._executor = _started_threads(workers)

    def start(self, job: PlanningJob, sink: PlanSink) -> None:
        """Queue a job; a worker takes it as soon as one is free."""
        future = self._executor.submit(self._plan, job, sink)
        future.add_done_callback(partial(self._report_failure, job, sink))

    def run(self, work: Callable[[], Result]) -> Future[Result]:
        """Queue anything else that takes a worker's time."""
        return self._executor.submit(work)

    def close(self) -> None:
        """Drop the queued jobs and wait for those being planned; cancel their records first."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _plan(self, job: PlanningJob, sink: PlanSink) -> None:
        crash_point(CrashPoint.PLANNING)
        run = PlanningRun(job, self._policy, self._spans)
        for plan in run:
            self._post(partial(sink.publish, job.record, plan))
        self._post(partial(sink.finish_planning, job.record, run.summary()))

    def _report_failure(self, job: PlanningJob, sink: PlanSink, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._post(partial(sink.fail_planning, job.record, error))
