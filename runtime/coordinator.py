"""The daemon's state and every change to it, without transport: one thread owns it.

Each method either does all it says or raises a ForemoeError and changes nothing.
"""

import logging
import os
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from foremoe import __version__
from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    ForemoeError,
    InvalidInputError,
    NotReadyError,
    UnknownError,
)
from foremoe.limits import check_range
from foremoe.rpc.foresight import UploadHeader
from foremoe.rpc.proposal import ProposalRequest
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.schedule import MicroStepSchedule, check_schedule
from foremoe.rpc.status import RuntimeStatus, StageDetail, StepState, StepStatus
from foremoe.rpc.timeline import Timeline
from foremoe.rpc.v1.foresight_pb2 import ForesightCommit
from foremoe.runtime.budget import ByteBudget
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.groups import EpGroup, EpGroups
from foremoe.runtime.journal import log_degraded, log_failed, log_planned, log_step
from foremoe.runtime.plan_log import PlanLog, PublishedPlan
from foremoe.runtime.planning import PlanningJob, planning_job
from foremoe.runtime.proposal import ProposalJob, proposal_job
from foremoe.runtime.stage import PlannedMicroStep, PlanningSummary, StageRecord, stage_bytes
from foremoe.runtime.step import Step
from foremoe.runtime.store import ForesightStore
from foremoe.runtime.totals import StageTotals, Totals
from foremoe.runtime.upload import StagedUpload
from foremoe.vocabulary import Stage

log = logging.getLogger(__name__)

RELEASED_STEPS = 8  # that the status still tells of


class Coordinator:
    """Foresight and schedules in, plans out, reports kept; see foremoe.runtime.step for the states.

    start_planning: takes a job to a worker, which answers through publish, finish_planning and
        fail_planning on the thread that owns the coordinator.
    wake_streams: called after each change that a plan stream may wait for.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        start_planning: Callable[[PlanningJob], None],
        wake_streams: Callable[[], None],
    ) -> None:
        self.daemon_id = uuid.uuid4().hex
        self.budget = ByteBudget(config.memory_limit_bytes)
        self.groups = EpGroups()
        self.steps: dict[int, Step] = {}
        self._config = config
        self._start_planning = start_planning
        self._wake_streams = wake_streams
        self._totals = Totals()
        self._released: deque[StepStatus] = deque(maxlen=RELEASED_STEPS)
        self._plan_logs: defaultdict[str, PlanLog] = defaultdict(PlanLog)
        self._started = time.monotonic()

    # Foresight

    def open_upload(self, header: UploadHeader) -> StagedUpload:
        """Begin an upload; end it with commit_upload or abort_upload, exactly once."""
        return StagedUpload(header, self._reserve)

    def abort_upload(self, upload: StagedUpload) -> None:
        self.budget.release(upload.reserved_bytes)

    def commit_upload(self, upload: StagedUpload, commit: ForesightCommit) -> tuple[int, int]:
        """Apply an upload whole; how many sequences were new and how many known.

        Raises InvalidInputError when the counts or the checksum differ, ConflictError when it
        contradicts what is kept, ExhaustedError when too many steps are held. The caller still
        has to abort an upload that was refused.
        """
        upload.verify(commit)
        header = upload.header
        step = self.steps.get(header.step)
        if step is None:
            self._make_room_for_step()
            step = Step(header.step, ForesightStore(header))
        before = step.foresight.stored_bytes
        counts = step.foresight.commit(header, upload.sequences)
        self.steps[header.step] = step
        kept = step.foresight.stored_bytes - before
        self.budget.release(upload.reserved_bytes - kept)
        crash_point(CrashPoint.COMMITTED)
        return counts

    # Schedules

    def open_proposal(self, request: ProposalRequest) -> ProposalJob:
        """Look up what is to be packed; end it with close_proposal when no worker needs it.

        Raises UnknownError for a group, step or sequence not known, InvalidInputError for a model
        that does not fit the group, ExhaustedError when there is no memory to pack in.
        """
        group = self.groups.get(request.ep_group)
        job = proposal_job(request, group, self._step(request.step))
        self._reserve(job.work_bytes, keep=request.step)
        return job

    def close_proposal(self, job: ProposalJob) -> None:
        self.budget.release(job.work_bytes)

    def submit_schedule(
        self, ep_group: str, step: int, stage: Stage, micro_steps: Sequence[MicroStepSchedule]
    ) -> int:
        """Accept a stage's schedule and start planning it; the micro-steps to be planned.

        Raises UnknownError for a group, step or sequence not known, InvalidInputError for a
        schedule or a model that does not fit the group, ConflictError for another schedule of the
        same stage, ExhaustedError when its plans would not fit in memory.
        """
        group = self.groups.get(ep_group)
        schedule = tuple(micro_steps)
        check_schedule(schedule, group.description.ranks)
        held = self._step(step)
        earlier = held.stages.get((ep_group, stage))
        if earlier is not None:
            if earlier.schedule != schedule:
                raise ConflictError(
                    f"step {step}: {stage} of EP group {ep_group!r} has another schedule already; "
                    "release the step to start it anew"
                )
            return len(schedule)
        # Before anything is made for it.
        self.budget.check_possible(sum(stage_bytes(group.description, schedule)))
        record = StageRecord(group, step, stage, schedule)
        config = self._config
        job = planning_job(record, group, held, config.target, config.cost(stage))
        self._reserve(record.load_bytes + record.kept_bytes, keep=step)
        held.add_stage(record)
        held.homes[ep_group] = job.homes
        self._start_planning(job)
        return len(schedule)

    def release_step(self, step: int) -> None:
        """End a step and free what it held; a step that is not held is released already."""
        held = self.steps.pop(step, None)
        if held is None:
            return
        for record in held.stages.values():
            if record.reports.any_reported and not record.reports.all_reported:
                self._totals.note_reported(record)
        for ep_group in held.groups() - held.logged:
            self._log_step(held, ep_group)
        held.release()
        self._released.append(held.status())
        self.budget.release(held.stored_bytes)
        for plan_log in self._plan_logs.values():
            plan_log.remove(step)

    # Plans, as planning.PlanSink

    def publish(self, record: StageRecord, plan: PlannedMicroStep) -> None:
        """Make a plan available to the streams; plans of a released step are dropped."""
        if record.cancelled.is_set():
            return
        record.plans.append(plan)
        group = self.groups.get(record.ep_group)
        if group.description.moves_homes:
            group.home = plan.home
        self._plan_logs[record.ep_group].append(record, plan)
        crash_point(CrashPoint.PUBLISHED)
        self._wake_streams()

    def finish_planning(self, record: StageRecord, summary: PlanningSummary) -> None:
        self.budget.release(record.load_bytes)
        if record.cancelled.is_set():
            return
        record.summary = summary
        self.steps[record.step].note_planned()
        self._totals.note_planned(record, summary)
        log_planned(record, summary)
        self._wake_streams()

    def fail_planning(self, record: StageRecord, error: BaseException) -> None:
        """Planning broke off: the ranks run the micro-steps without a plan unbalanced."""
        self.budget.release(record.load_bytes)
        if record.cancelled.is_set():
            return
        record.failed = True
        self.steps[record.step].note_planned()
        self._totals.note_failed(record)
        log_failed(record, error)
        self._wake_streams()

    # Ranks

    def register(self, registration: RankRegistration) -> str:
        """Take a rank in; the name of this run of the daemon.

        Raises as EpGroups.register and RuntimeConfig.check_experts do, and ExhaustedError when
        there is no room for the homes of a new group that moves them.
        """
        self._config.check_experts(registration.ep_group, registration.num_experts)
        home_bytes = 0
        if registration.moves_homes and registration.ep_group not in self.groups:
            home_bytes = len(registration.layers) * registration.num_experts * 4
        self.budget.reserve(home_bytes)
        try:
            self.groups.register(registration)
        except ForemoeError:
            self.budget.release(home_bytes)
            raise
        crash_point(CrashPoint.REGISTERED)
        return self.daemon_id

    def open_stream(self, ep_group: str, rank: int) -> EpGroup:
        """Count a plan stream of a registered rank until close_stream; raises UnknownError."""
        group = self.groups.member(ep_group, rank)
        group.streaming += 1
        crash_point(CrashPoint.STREAMING)
        return group

    def close_stream(self, group: EpGroup) -> None:
        group.streaming -= 1

    def is_planning(self, ep_group: str) -> bool:
        """Whether plans of the group are still to come, without another schedule."""
        stages = (record for step in self.steps.values() for record in step.stages.values())
        return any(record.ep_group == ep_group and not record.is_planned for record in stages)

    def next_plan(self, ep_group: str, number: int) -> PublishedPlan | None:
        """The group's first published plan after ``number`` (0: from the beginning)."""
        return self._plan_logs[ep_group].after(number)

    def report(
        self,
        ep_group: str,
        rank: int,
        step: int,
        stage: Stage,
        reports: Sequence[MicroStepReport],
        timeline: Timeline | None = None,
    ) -> None:
        """Keep what a rank says about micro-steps it ran; the same report again changes nothing.

        timeline: what ran when in the first of them. Raises UnknownError for a group, rank or step
        not known, NotReadyError for a stage without a schedule, InvalidInputError for a micro-step
        outside the schedule.
        """
        group = self.groups.member(ep_group, rank)
        held = self._step(step)
        record = held.stages.get((ep_group, stage))
        if record is None:
            raise NotReadyError(
                f"step {step}: {stage} of EP group {ep_group!r} has no schedule; submit it first"
            )
        layers = len(group.description.layers)
        for index, report in enumerate(reports):
            field = f"micro_steps[{index}]"
            check_range(report.micro_step, 0, len(record.schedule) - 1, f"{field}.micro_step")
            if len(report.computed_tokens) != layers or len(report.exposed_seconds) != layers:
                raise InvalidInputError(f"{field}: expected one entry for each of {layers} layers")
        if timeline is not None:
            last = int(timeline.rows[:, 1].max(initial=0))
            check_range(last, 0, len(record.schedule) - 1, "timeline.spans (micro-step)")
        if record.reports.all_reported:
            return  # each of these has come before
        if timeline is not None:
            record.reports.add_timeline(rank, timeline)
        was_degraded = record.reports.degraded > 0
        for report in reports:
            record.reports.add(rank, report)
        if reports:
            held.note_report()
        if record.reports.degraded and not was_degraded:
            log_degraded(record, rank, next(filter(attrgetter("degraded_reason"), reports)))
        if record.reports.all_reported:
            self._totals.note_reported(record)
            if held.is_complete(ep_group):
                self._log_step(held, ep_group)

    def status(self) -> RuntimeStatus:
        return RuntimeStatus(
            version=__version__,
            daemon_id=self.daemon_id,
            pid=os.getpid(),
            uptime_seconds=time.monotonic() - self._started,
            stored_bytes=self.budget.used,
            stored_bytes_limit=self.budget.limit,
            ep_groups=self.groups.status(self._latest()),
            steps=tuple(self.steps[number].status() for number in sorted(self.steps)),
            released=tuple(self._released),
        )

    def totals(self) -> dict[tuple[str, Stage], StageTotals]:
        """What the EP groups that are alive have done, by group and kind of stage."""
        return self._totals.alive(self.groups.streaming())

    def _latest(self) -> dict[str, tuple[StageDetail, ...]]:
        latest: dict[str, tuple[StageDetail, ...]] = {}
        for (ep_group, _), totals in self.totals().items():
            if totals.latest is not None:
                latest[ep_group] = (*latest.get(ep_group, ()), totals.latest)
        return latest

    def _log_step(self, held: Step, ep_group: str) -> None:
        held.logged.add(ep_group)
        stages = [r.status() for (group, _), r in held.stages.items() if group == ep_group]
        log_step(held.number, ep_group, stages)

    # Room

    def _step(self, number: int) -> Step:
        held = self.steps.get(number)
        if held is None:
            raise UnknownError(
                f"step {number} is not known or was released; upload its foresight first"
            )
        return held

    def _reserve(self, size: int, keep: int | None = None) -> None:
        """Reserve bytes, if need be releasing finished steps, but never ``keep``.

        Raises ExhaustedError, releasing nothing, when that would not be enough.
        """
        doomed: list[int] = []
        freed = 0
        for number in self._finished_steps():
            if self.budget.fits(size - freed):
                break
            if number != keep:
                doomed.append(number)
                freed += self.steps[number].stored_bytes
        if self.budget.fits(size - freed):
            for number in doomed:
                self._retire(number)
        self.budget.reserve(size)

    def _make_room_for_step(self) -> None:
        if len(self.steps) < self._config.max_steps:
            return
        finished = next(self._finished_steps(), None)
        if finished is None:
            raise ExhaustedError(
                f"{len(self.steps)} steps are held, the oldest is {min(self.steps)}; release "
                "steps that are done, or start the daemon with a higher --max-steps"
            )
        self._retire(finished)

    def _retire(self, number: int) -> None:
        log.info("step %d is finished; released to make room", number)
        self.release_step(number)

    def _finished_steps(self) -> Iterator[int]:
        """Steps that nobody needs any more, oldest first."""
        return (number for number in sorted(self.steps) if self._is_finished(self.steps[number]))

    def _is_finished(self, step: Step) -> bool:
        """Whether every EP group of the step has reported all of it or works on a later step."""
        later = [held for number, held in self.steps.items() if number > step.number]
        if not step.groups():
            return any(held.state is StepState.EXECUTING for held in later)
        return all(
            step.is_complete(ep_group) or any(held.has_reports(ep_group) for held in later)
            for ep_group in step.groups()
        )
