"""The coordinator against a model: any order of calls, good and bad, over several steps."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from foremoe.errors import ForemoeError
from foremoe.planner.packing import AttentionCost
from foremoe.planner.policies import POLICIES
from foremoe.rpc.foresight import SequencePiece, UploadHeader
from foremoe.rpc.proposal import ProposalRequest
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.schedule import MicroStepSchedule
from foremoe.rpc.status import RuntimeStatus, StepState
from foremoe.rpc.v1.foresight_pb2 import ForesightCommit
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.coordinator import Coordinator
from foremoe.runtime.planning import PlanningJob, PlanningRun
from foremoe.runtime.store import SEQUENCE_OVERHEAD_BYTES
from foremoe.runtime.upload import StagedUpload
from foremoe.vocabulary import Stage
from tests.runtime.uploads import EXPERTS, LAYERS, TOP_K, histogram

STEPS = st.integers(0, 3)
NAMES = st.sampled_from("abcd")
STAGES = st.sampled_from(list(Stage))
CONTENTS = st.sampled_from([histogram(2, 0, 0, 0), histogram(1, 1, 0, 0)])
FLAWS = st.sampled_from(["none", "none", "none", "stranger", "repeat"])
RARELY = st.sampled_from([False, False, True])
GROUP = RankRegistration("group", 0, 2, 1, 1, EXPERTS, LAYERS)
SEQUENCE_BYTES = len(LAYERS) * EXPERTS * 4 + SEQUENCE_OVERHEAD_BYTES


class Planning:
    """A job being planned, advanced by the test one plan at a time."""

    def __init__(self, job: PlanningJob) -> None:
        self.job = job
        self.run = PlanningRun(job, POLICIES["foremoe"])
        self.plans = iter(self.run)


class CoordinatorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.planning: list[Planning] = []
        self.wakes = 0
        self.coordinator = Coordinator(
            RuntimeConfig("unused/s", memory_limit_bytes=40_000, max_steps=3),
            lambda job: self.planning.append(Planning(job)),
            self.wake,
        )
        self.uploads: list[tuple[StagedUpload, dict[str, Any]]] = []
        self.sequences: dict[int, dict[str, Any]] = {}

    def wake(self) -> None:
        self.wakes += 1

    def snapshot(self) -> RuntimeStatus:
        return replace(self.coordinator.status(), uptime_seconds=0.0)

    def attempt(self, call: Callable[[], object]) -> bool:
        """Whether ``call`` was accepted; when it was not, nothing has changed."""
        before = self.snapshot()
        try:
            call()
        except ForemoeError:
            assert self.snapshot() == before
            return False
        return True

    def forget_retired(self) -> None:
        """Finished steps may be released to make room."""
        for number in self.sequences.keys() - self.coordinator.steps.keys():
            del self.sequences[number]

    @initialize()
    def begin(self) -> None:
        for rank in range(GROUP.ranks):
            self.register(rank, GROUP.spare_slots)
        self.upload(0, set("abcd"), histogram(2, 0, 0, 0))

    @rule(rank=st.integers(0, 1), spare_slots=st.sampled_from([1, 1, 1, 2]))
    def register(self, rank: int, spare_slots: int) -> None:
        registration = replace(GROUP, rank=rank, spare_slots=spare_slots)
        self.attempt(lambda: self.coordinator.register(registration))

    @rule(step=STEPS, top_k=st.sampled_from([TOP_K, TOP_K, TOP_K, 1]))
    def open_upload(self, step: int, top_k: int) -> None:
        header = UploadHeader(step, LAYERS, EXPERTS, top_k)
        self.uploads.append((self.coordinator.open_upload(header), {}))

    @precondition(lambda self: self.uploads)
    @rule(data=st.data(), name=NAMES, content=CONTENTS)
    def add(self, data: st.DataObject, name: str, content: Any) -> None:
        upload, sequences = data.draw(st.sampled_from(self.uploads))
        if self.attempt(lambda: upload.add(SequencePiece(name, 1, content, content))):
            sequences[name] = sequences.get(name, 0) + content

    @precondition(lambda self: self.uploads)
    @rule(data=st.data(), honest=st.sampled_from([True, True, False]))
    def commit(self, data: st.DataObject, honest: bool) -> None:
        pair = data.draw(st.sampled_from(self.uploads))
        self.uploads.remove(pair)
        self.finish_upload(pair[0], pair[1], honest=honest)

    def finish_upload(self, upload: StagedUpload, sequences: dict[str, Any], honest: bool) -> None:
        message = ForesightCommit(
            chunks=upload.chunks + (not honest),
            payload_bytes=upload._payload_bytes,
            crc32=upload._crc32,
        )
        step = upload.header.step
        held = self.sequences.get(step, {})
        agrees = all(
            np.array_equal(held[name], sequences[name]) for name in held.keys() & sequences
        )
        if self.attempt(lambda: self.coordinator.commit_upload(upload, message)):
            assert honest
            assert agrees
            self.forget_retired()
            self.sequences[step] = {**self.sequences.get(step, {}), **sequences}
        else:
            self.coordinator.abort_upload(upload)

    @precondition(lambda self: self.uploads)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.uploads))
        self.uploads.remove(pair)
        self.coordinator.abort_upload(pair[0])

    @rule(step=STEPS, names=st.sets(NAMES, min_size=1), content=CONTENTS)
    def upload(self, step: int, names: set[str], content: Any) -> None:
        self.open_upload(step, TOP_K)
        for name in names:
            upload, sequences = self.uploads[-1]
            if self.attempt(lambda: upload.add(SequencePiece(name, 1, content, content))):  # noqa: B023 - called at once
                sequences[name] = content
        upload, sequences = self.uploads.pop()
        self.finish_upload(upload, sequences, honest=True)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), stage=STAGES, micro_steps=st.integers(1, 2), flaw=FLAWS)
    def schedule(self, data: st.DataObject, stage: Stage, micro_steps: int, flaw: str) -> None:
        step = data.draw(st.sampled_from(sorted(self.sequences)))
        schedule = []
        for _ in range(micro_steps):
            ranks: list[list[str]] = [[], []]
            for name in self.sequences[step]:
                data.draw(st.sampled_from([*ranks, []])).append(name)
            schedule.append(MicroStepSchedule(0, ranks))
        if flaw != "none":
            extra = "stranger" if flaw == "stranger" else next(iter(self.sequences[step]), "")
            schedule.append(MicroStepSchedule(0, [[extra], [extra]]))
        earlier = self.coordinator.steps[step].stages.get(("group", stage))
        if self.attempt(lambda: self.coordinator.submit_schedule("group", step, stage, schedule)):
            assert flaw == "none"
            assert earlier is None or earlier.schedule == tuple(schedule)
            event("scheduled")

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), flaw=FLAWS)
    def propose(self, data: st.DataObject, flaw: str) -> None:
        step = data.draw(st.sampled_from(sorted(self.sequences)))
        names = sorted(self.sequences[step])
        extra = {"none": [], "stranger": [["stranger"]], "repeat": [["stranger", "stranger"]]}[flaw]

        def pack() -> None:
            request = ProposalRequest("group", step, 1 << 20, 1, AttentionCost(), [names, *extra])
            job = self.coordinator.open_proposal(request)
            proposed = job.propose().micro_steps
            self.coordinator.close_proposal(job)
            packed = [name for micro_step in proposed for ids in micro_step.ranks for name in ids]
            assert sorted(packed) == names

        if self.attempt(pack):
            assert flaw == "none"
            event("proposed")
        self.forget_retired()

    @precondition(lambda self: self.planning)
    @rule(data=st.data(), calls=st.integers(1, 4), breaks=RARELY, too_late=RARELY)
    def plan(self, data: st.DataObject, calls: int, breaks: bool, too_late: bool) -> None:
        planning = data.draw(st.sampled_from(self.planning))
        record = planning.job.record
        plans = list(itertools.islice(planning.plans, calls))
        if too_late:
            self.release(record.step)
        for plan in plans:
            wakes = self.wakes
            self.coordinator.publish(record, plan)
            assert self.wakes == wakes + (not record.cancelled.is_set())
        if breaks:
            self.planning.remove(planning)
            self.coordinator.fail_planning(record, ValueError("a bug"))
        elif calls > len(record.schedule) or record.cancelled.is_set():
            self.planning.remove(planning)
            self.coordinator.finish_planning(record, planning.run.summary())
            event("planned")

    @rule(data=st.data(), rank=st.integers(0, 1), micro_steps=st.sets(st.integers(0, 2)))
    def report(self, data: st.DataObject, rank: int, micro_steps: set[int]) -> None:
        scheduled = [
            (number, stage)
            for number, step in self.coordinator.steps.items()
            for _, stage in step.stages
        ]
        step, stage = data.draw(st.sampled_from([*scheduled, (0, Stage.UPDATE), (9, Stage.UPDATE)]))
        layers = len(LAYERS)
        reports = [
            MicroStepReport(index, "", np.ones(layers, np.int64), np.zeros(layers))
            for index in micro_steps
        ]
        if self.attempt(lambda: self.coordinator.report("group", rank, step, stage, reports)):
            event("reported")

    @rule(step=STEPS)
    def release(self, step: int) -> None:
        self.coordinator.release_step(step)
        self.sequences.pop(step, None)
        assert step not in self.coordinator.steps

    @invariant()
    def bytes_are_accounted_for(self) -> None:
        held = sum(
            len(step.foresight.sequences) * SEQUENCE_BYTES
            + sum(record.kept_bytes for record in step.stages.values())
            for step in self.coordinator.steps.values()
        )
        staged = sum(len(sequences) for _, sequences in self.uploads) * SEQUENCE_BYTES
        loads = sum(planning.job.record.load_bytes for planning in self.planning)
        assert self.coordinator.budget.used == held + staged + loads
        assert self.coordinator.budget.used <= self.coordinator.budget.limit

    @invariant()
    def what_was_committed_is_held(self) -> None:
        self.forget_retired()
        held = {number: step.foresight.sequences for number, step in self.coordinator.steps.items()}
        assert held.keys() == self.sequences.keys()
        for number, sequences in self.sequences.items():
            assert held[number].keys() == sequences.keys()
            for name, counts in sequences.items():
                assert np.array_equal(held[number][name].histogram, counts)

    @invariant()
    def only_plans_of_held_steps_are_published(self) -> None:
        published, number = set(), 0
        while (plan := self.coordinator.next_plan("group", number)) is not None:
            number = plan.number
            published.add((plan.record.step, plan.record.stage, plan.plan.micro_step))
        made = {
            (step.number, record.stage, plan.micro_step)
            for step in self.coordinator.steps.values()
            for record in step.stages.values()
            for plan in record.plans
        }
        assert published == made

    @invariant()
    def state_says_what_is_there(self) -> None:
        for step in self.coordinator.steps.values():
            records = step.stages.values()
            if any(record.reports.any_reported for record in records):
                assert step.state is StepState.EXECUTING
            elif not records:
                assert step.state is StepState.COLLECTING
            elif all(record.is_planned for record in records):
                assert step.state is StepState.PLANNED
            else:
                assert step.state is StepState.SCHEDULED


TestCoordinator = CoordinatorMachine.TestCase
TestCoordinator.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
