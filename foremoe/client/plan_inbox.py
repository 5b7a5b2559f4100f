"""The plans a rank has received, and waiting for one."""

import threading

from foremoe.rpc.rank_plan import RankPlan
from foremoe.vocabulary import Stage


class PlanInbox:
    """Filled by the background thread, read by the training thread."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, Stage, int], RankPlan] = {}
        self._overdue: set[tuple[int, Stage]] = set()
        self._first_step = 0
        self._is_open = False
        self._changed = threading.Condition()

    @property
    def is_open(self) -> bool:
        """Whether plans may still arrive."""
        return self._is_open

    def open(self) -> None:
        with self._changed:
            self._is_open = True

    def close(self) -> None:
        """No more plans for now: ends every wait. What has arrived can still be read."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()

    def put(self, plan: RankPlan) -> None:
        """A newer plan of the same micro-step replaces the older one."""
        with self._changed:
            if plan.step < self._first_step:
                return
            self._plans[plan.step, plan.stage, plan.micro_step] = plan
            self._overdue.discard((plan.step, plan.stage))
            self._changed.notify_all()

    def wait(
        self, step: int, stage: Stage, micro_step: int, timeout_seconds: float
    ) -> RankPlan | None:
        """The plan as soon as it is here; None at the deadline or when none can come.

        A stage that was waited for in vain is not waited for again until one of its plans arrives:
        a daemon that lost the stage costs one timeout, not one per micro-step. A timeout of 0 is
        a look, not a wait.
        """
        key = (step, stage, micro_step)
        plan = self._plans.get(key)
        if plan is not None:
            return plan
        with self._changed:
            if (step, stage) not in self._overdue:
                self._changed.wait_for(
                    lambda: key in self._plans or not self._is_open, timeout_seconds
                )
                if key not in self._plans and self._is_open and timeout_seconds > 0:
                    self._overdue.add((step, stage))
            return self._plans.get(key)

    def forget_before(self, step: int) -> None:
        """Drop the plans of steps below ``step``, also those that arrive later."""
        with self._changed:
            self._first_step = step
            self._plans = {key: plan for key, plan in self._plans.items() if key[0] >= step}
            self._overdue = {key for key in self._overdue if key[0] >= step}
