"""The daemon, as simply as it can be said: what each call is answered, and what status then tells.

Each method returns the error class that the daemon must refuse with, and then changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    ForemoeError,
    InvalidInputError,
    NotReadyError,
    UnknownError,
)
from foremoe.rpc.status import StepState
from foremoe.vocabulary import DegradedReason, Stage

RANKS = 2
RELEASED_STEPS = 8
Refusal = type[ForemoeError] | None
Schedule = tuple[tuple[tuple[str, ...], ...], ...]  # sequence ids by micro-step and rank
Plan = tuple[int, Stage, int]  # step, stage, micro-step


@dataclass
class StageModel:
    """reports: why each (rank, micro-step) ran without its plan; empty if it had it."""

    schedule: Schedule
    reports: dict[tuple[int, int], str] = field(default_factory=dict)

    @property
    def all_reported(self) -> bool:
        return len(self.reports) == RANKS * len(self.schedule)

    def summary(self) -> tuple[object, ...]:
        """Micro-steps, reported by all ranks, degraded by reason, and agreement misses."""
        micro_steps = range(len(self.schedule))
        reported = sum(all((r, m) in self.reports for r in range(RANKS)) for m in micro_steps)
        reasons: dict[str, int] = {}
        misses = 0
        for micro_step in micro_steps:
            said = {self.reports.get((rank, micro_step), "") for rank in range(RANKS)}
            first = next((reason for reason in DegradedReason if reason in said), None)
            if first is not None:
                reasons[str(first)] = reasons.get(str(first), 0) + 1
            misses += DegradedReason.OTHER_RANK in said
        return len(self.schedule), reported, reasons, misses


@dataclass
class StepModel:
    layers: tuple[int, ...]
    sequences: dict[str, bytes] = field(default_factory=dict)
    stages: dict[tuple[str, Stage], StageModel] = field(default_factory=dict)

    @property
    def executing(self) -> bool:
        return any(stage.reports for stage in self.stages.values())

    @property
    def state(self) -> StepState:
        """Once planning has come to its end."""
        if self.executing:
            return StepState.EXECUTING
        return StepState.PLANNED if self.stages else StepState.COLLECTING

    def complete(self, group: str) -> bool:
        mine = [stage for (name, _), stage in self.stages.items() if name == group]
        return (group, Stage.UPDATE) in self.stages and all(one.all_reported for one in mine)

    def at_work(self, group: str) -> bool:
        return any(one.reports for (name, _), one in self.stages.items() if name == group)

    def summary(self, state: StepState) -> tuple[object, ...]:
        stages = [(*key, *stage.summary()) for key, stage in self.stages.items()]
        return state, len(self.sequences), stages


@dataclass
class GroupModel:
    spare_slots: int
    registered: set[int] = field(default_factory=set)
    streaming: int = 0


class DaemonModel:
    def __init__(self, layers: tuple[int, ...], max_steps: int) -> None:
        """layers: of every EP group."""
        self._layers = layers
        self._max_steps = max_steps
        self.groups: dict[str, GroupModel] = {}
        self.steps: dict[int, StepModel] = {}
        self.released: list[tuple[int, tuple[object, ...]]] = []

    def register(self, group: str, rank: int, spare_slots: int) -> Refusal:
        if rank >= RANKS:
            return InvalidInputError
        known = self.groups.setdefault(group, GroupModel(spare_slots))
        if known.spare_slots != spare_slots:
            return ConflictError
        known.registered.add(rank)
        return None

    def is_member(self, group: str, rank: int) -> bool:
        return group in self.groups and rank in self.groups[group].registered

    def upload(self, step: int, layers: tuple[int, ...], sequences: Mapping[str, bytes]) -> Refusal:
        """One that arrives whole."""
        held = self.steps.get(step)
        if held is None:
            if len(self.steps) >= self._max_steps:
                finished = [number for number in sorted(self.steps) if self._is_finished(number)]
                if not finished:
                    return ExhaustedError
                self.release(finished[0])
            held = self.steps[step] = StepModel(layers)
        known = sequences.keys() & held.sequences.keys()
        if layers != held.layers or any(sequences[n] != held.sequences[n] for n in known):
            return ConflictError
        held.sequences.update(sequences)
        return None

    def submit(self, group: str, step: int, stage: Stage, schedule: Schedule) -> Refusal:
        if group not in self.groups:
            return UnknownError
        for micro_step in schedule:
            named = [name for ids in micro_step for name in ids]
            if len(set(named)) < len(named):
                return InvalidInputError
        refusal = self._cannot_plan(step, [n for m in schedule for ids in m for n in ids])
        earlier = self.steps[step].stages.get((group, stage)) if step in self.steps else None
        if earlier is not None:
            return None if earlier.schedule == schedule else ConflictError
        if refusal is None:
            self.steps[step].stages[group, stage] = StageModel(schedule)
        return refusal

    def propose(self, group: str, step: int) -> Refusal:
        return UnknownError if group not in self.groups else self._cannot_plan(step, [])

    def report(
        self, group: str, rank: int, step: int, stage: Stage, said: Mapping[int, str]
    ) -> Refusal:
        """said: reasons by micro-step."""
        if not self.is_member(group, rank) or step not in self.steps:
            return UnknownError
        held = self.steps[step].stages.get((group, stage))
        if held is None:
            return NotReadyError
        if any(micro_step >= len(held.schedule) for micro_step in said):
            return InvalidInputError
        for micro_step, reason in said.items():
            held.reports.setdefault((rank, micro_step), reason)
        return None

    def release(self, step: int) -> None:
        held = self.steps.pop(step, None)
        if held is not None:
            self.released.append((step, held.summary(StepState.RELEASED)))

    def plans(self, group: str) -> set[Plan]:
        """Those of a group's unreleased steps."""
        return {
            (number, stage, micro_step)
            for number, step in self.steps.items()
            for (name, stage), held in step.stages.items()
            if name == group
            for micro_step in range(len(held.schedule))
        }

    def _cannot_plan(self, step: int, names: Sequence[str]) -> Refusal:
        held = self.steps.get(step)
        if held is None or any(name not in held.sequences for name in names):
            return UnknownError
        return None if set(self._layers) <= set(held.layers) else InvalidInputError

    def _is_finished(self, number: int) -> bool:
        """Whether every group of the step is through with it, or at work on a later one."""
        step = self.steps[number]
        later = [held for other, held in self.steps.items() if other > number]
        groups = {group for group, _ in step.stages}
        if not groups:
            return any(held.executing for held in later)
        return all(
            step.complete(group) or any(held.at_work(group) for held in later) for group in groups
        )
