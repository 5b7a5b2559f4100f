"""Published plans in the order they were made, so that any stream can follow from any point."""

from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from foremoe.rpc.rank_plan import RankPlan
from foremoe.rpc.registration import RankRegistration
from foremoe.runtime.stage import PlannedMicroStep, StageRecord


@dataclass(frozen=True, slots=True, eq=False)
class PublishedPlan:
    """A plan and its place in the log; numbers only grow."""

    number: int
    record: StageRecord
    plan: PlannedMicroStep

    def for_rank(self, group: RankRegistration, rank: int) -> RankPlan:
        """What one rank of the group is told of it."""
        return RankPlan(
            step=self.record.step,
            stage=self.record.stage,
            micro_step=self.plan.micro_step,
            micro_steps=len(self.record.schedule),
            mini_batch=self.record.schedule[self.plan.micro_step].mini_batch,
            layers=np.array(group.layers, np.int32),
            home=self.plan.home,
            replica_expert=self.plan.replica_expert,
            replica_tokens=self.plan.replica_tokens[:, rank],
            digest=self.plan.digest,
        )


class PlanLog:
    """The plans of one EP group's unreleased steps.

    A stream remembers the last number it sent and asks for the next; the log, not the streams,
    holds the plans, so a slow reader costs no memory.
    """

    def __init__(self) -> None:
        self._plans: list[PublishedPlan] = []
        self._last_number = 0

    def append(self, record: StageRecord, plan: PlannedMicroStep) -> None:
        self._last_number += 1
        self._plans.append(PublishedPlan(self._last_number, record, plan))

    def after(self, number: int) -> PublishedPlan | None:
        """The first plan with a higher number, or None if there is none yet."""
        index = bisect_right(self._plans, number, key=attrgetter("number"))
        return self._plans[index] if index < len(self._plans) else None

    def remove(self, step: int) -> None:
        """Forget the plans of a released step."""
        self._plans = [plan for plan in self._plans if plan.record.step != step]
