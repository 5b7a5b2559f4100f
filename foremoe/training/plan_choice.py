"""Which plan the ranks of an EP group use in a micro-step, settled by all of them alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from foremoe.client.rank import MicroStepReport, RankPlan
from foremoe.training.agreement import agree
from foremoe.training.layout import GroupLayout
from foremoe.training.lookahead import AgreedPlan
from foremoe.vocabulary import DegradedReason, Stage


class PlanSource(Protocol):
    """Where plans come from and reports go to; RankClient is the one that talks to the daemon."""

    @property
    def connected(self) -> bool: ...

    @property
    def missing_reason(self) -> DegradedReason: ...

    def wait(
        self, step: int, stage: Stage, micro_step: int, timeout_seconds: float
    ) -> RankPlan | None: ...

    def forget_before(self, step: int) -> None: ...

    def report(self, step: int, stage: Stage, micro_steps: Sequence[MicroStepReport]) -> None: ...

    def homes_moved(self, home: NDArray[np.int32]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """What a rank asks its client, and then the group; every method is for all ranks alike.

    client: None has no plans. wait_seconds: how long a micro-step may wait for its plan.
    """

    client: PlanSource | None
    layout: GroupLayout
    control_group: dist.ProcessGroup
    wait_seconds: float

    def homes(self, step: int, stage: Stage) -> NDArray[np.int32] | None:
        """``[L, E]`` of the stage's plans: None if that is where experts are, or a rank has none.

        A rank has none without its first plan, and if that one is of another model.
        """
        plan, _ = self._received(step, stage, 0, self.wait_seconds)
        if plan is not None and not self.layout.serves(plan):
            plan = None
        (pairs,) = agree([plan], self._slots_shape, self.control_group)
        if plan is None or pairs is None or self.layout.fits(plan):
            return None
        return plan.home

    def settle(
        self, step: int, stage: Stage, micro_step: int, promised: AgreedPlan | None
    ) -> tuple[AgreedPlan | None, AgreedPlan | None, str]:
        """The plan of a micro-step, that of the next one if it is there, and why there is none.

        promised: what was settled as the next one before; it stands.
        """
        plan, reason = (None, "") if promised is None else (promised.plan, "")
        if plan is None:
            plan, reason = self._fitting(step, stage, micro_step, self.wait_seconds)
        upcoming, _ = self._fitting(step, stage, micro_step + 1, 0.0)
        if plan is None or (upcoming is not None and upcoming.mini_batch != plan.mini_batch):
            upcoming = None
        pairs, pairs_next = agree([plan, upcoming], self._slots_shape, self.control_group)
        if promised is None and plan is not None and pairs is not None:
            promised = AgreedPlan(plan, pairs)
        if promised is None:
            return None, None, reason or DegradedReason.OTHER_RANK
        if upcoming is None or pairs_next is None:
            return promised, None, ""
        return promised, AgreedPlan(upcoming, pairs_next), ""

    @property
    def _slots_shape(self) -> tuple[int, int, int]:
        return len(self.layout.layers), self.layout.topology.ranks, self.layout.spare_slots

    def _fitting(
        self, step: int, stage: Stage, micro_step: int, wait_seconds: float
    ) -> tuple[RankPlan | None, str]:
        plan, reason = self._received(step, stage, micro_step, wait_seconds)
        if plan is not None and not self.layout.fits(plan):
            return None, DegradedReason.OTHER_LAYOUT
        return plan, reason

    def _received(
        self, step: int, stage: Stage, micro_step: int, wait_seconds: float
    ) -> tuple[RankPlan | None, str]:
        if self.client is None:
            return None, DegradedReason.NO_RUNTIME
        if not self.client.connected:
            wait_seconds = 0.0
        plan = self.client.wait(step, stage, micro_step, wait_seconds)
        return plan, "" if plan is not None else self.client.missing_reason
