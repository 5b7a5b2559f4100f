"""The plans of a stage, and what is drawn of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan, home_tokens
from foremoe.planner.problem import Topology


@dataclass(frozen=True, slots=True, eq=False)
class PlansRun:
    """One stage of one EP group, one plan a micro-step, all with the same homes.

    policy: that made them, None if nobody knows. target: the imbalance it was asked for.
    planning_seconds: float64 ``[M]``, what each plan took on one core, None if nobody knows.
    """

    source: str
    plans: Sequence[Plan]
    topology: Topology
    policy: str | None = None
    target: float | None = None
    planning_seconds: NDArray[np.float64] | None = None

    @property
    def spare_slots(self) -> int:
        return int(self.plans[0].replica_expert.shape[2])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Micro-steps, layers, ranks, experts."""
        layers, ranks, experts = self.plans[0].load.shape
        return len(self.plans), layers, ranks, experts

    @property
    def placed(self) -> NDArray[np.int32]:
        """Expert of every spare slot: ``[M, L, P, R]``."""
        return np.stack([plan.replica_expert for plan in self.plans])

    def tokens_before(self) -> NDArray[np.int64]:
        """Pairs each rank computes with contiguous homes and no replicas: ``[M, L, P]``."""
        _, layers, ranks, experts = self.shape
        home = contiguous_homes(layers, experts, ranks)
        return np.stack([home_tokens(plan.load, home) for plan in self.plans])

    def tokens_after(self) -> NDArray[np.int64]:
        """Pairs each rank computes by plan: ``[M, L, P]``."""
        return np.stack([plan.rank_tokens() for plan in self.plans])

    def before(self) -> NDArray[np.float64]:
        """Imbalance ``[M, L]`` of ``tokens_before``."""
        return imbalance(self.tokens_before())

    def after(self) -> NDArray[np.float64]:
        """Imbalance ``[M, L]`` of ``tokens_after``."""
        return imbalance(self.tokens_after())
