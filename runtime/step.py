"""One RL step and the states it goes through.

    collecting -> scheduled -> planned -> executing -> released

A step collects foresight until its first schedule. It is scheduled while any stage's plans are
being made and planned when all are; another stage's schedule takes it back from planned to
scheduled. The first report of a rank makes it executing, whether or not all plans are made: ranks
never wait for the daemon. From every state it can be released, and then nothing of it is kept.
Foresight may still arrive after the first schedule, for EP groups whose schedule is yet to come.
"""

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.rpc.status import StepState, StepStatus
from foremoe.runtime.stage import StageRecord
from foremoe.runtime.step_homes import StepHomes
from foremoe.runtime.store import ForesightStore
from foremoe.vocabulary import Stage

EDGES: dict[StepState, frozenset[StepState]] = {
    StepState.COLLECTING: frozenset({StepState.SCHEDULED, StepState.RELEASED}),
    StepState.SCHEDULED: frozenset({StepState.PLANNED, StepState.EXECUTING, StepState.RELEASED}),
    StepState.PLANNED: frozenset({StepState.SCHEDULED, StepState.EXECUTING, StepState.RELEASED}),
    StepState.EXECUTING: frozenset({StepState.RELEASED}),
    StepState.RELEASED: frozenset(),
}


class Step:
    """The foresight of a step, its stages by EP group, and its state.

    logged: the EP groups whose log line of this step is written. homes: by EP group, from its first
    schedule on.
    """

    def __init__(self, number: int, foresight: ForesightStore) -> None:
        self.number = number
        self.foresight = foresight
        self.stages: dict[tuple[str, Stage], StageRecord] = {}
        self.state = StepState.COLLECTING
        self.logged: set[str] = set()
        self.homes: dict[str, StepHomes] = {}

    @property
    def stored_bytes(self) -> int:
        """Bytes that releasing the step gives back at once."""
        kept = sum(record.kept_bytes for record in self.stages.values())
        return self.foresight.stored_bytes + kept

    def add_stage(self, record: StageRecord) -> None:
        self.stages[record.ep_group, record.stage] = record
        if self.state is not StepState.EXECUTING:
            self._enter(StepState.SCHEDULED)

    def note_planned(self) -> None:
        """A stage's planning has ended."""
        if self.state is StepState.SCHEDULED and all(
            record.is_planned for record in self.stages.values()
        ):
            self._enter(StepState.PLANNED)

    def note_report(self) -> None:
        """A rank has reported micro-steps."""
        self._enter(StepState.EXECUTING)

    def release(self) -> None:
        self._enter(StepState.RELEASED)
        for record in self.stages.values():
            record.cancelled.set()

    def groups(self) -> set[str]:
        """The EP groups that have scheduled a stage."""
        return {ep_group for ep_group, _ in self.stages}

    def has_reports(self, ep_group: str) -> bool:
        """Whether ranks of the EP group are, or were, at work on this step."""
        return any(
            record.reports.any_reported
            for (group, _), record in self.stages.items()
            if group == ep_group
        )

    def is_complete(self, ep_group: str) -> bool:
        """Whether the EP group has reported all its scheduled stages, the update among them."""
        records = [record for (group, _), record in self.stages.items() if group == ep_group]
        return (ep_group, Stage.UPDATE) in self.stages and all(
            record.reports.all_reported for record in records
        )

    def status(self) -> StepStatus:
        return StepStatus(
            step=self.number,
            state=self.state,
            sequences=len(self.foresight.sequences),
            stages=tuple(record.status() for record in self.stages.values()),
        )

    def _enter(self, state: StepState) -> None:
        if state is self.state:
            return
        assert state in EDGES[self.state], f"step {self.number}: {self.state} -> {state}"
        self.state = state
        crash_point(CrashPoint[state.name])
