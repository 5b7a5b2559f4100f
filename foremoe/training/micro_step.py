"""What one rank knows and remembers of one micro-step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from foremoe.client.rank import MicroStepReport
from foremoe.training.lookahead import AgreedPlan
from foremoe.transfer.copies import Path
from foremoe.transfer.replica import Replica
from foremoe.transfer.statistics import TransferStatistics


@dataclass(slots=True)
class MicroStepRecord:
    """What happened; kept for the report to the runtime.

    computed_tokens: int64 ``[L]``, (token, expert) pairs this rank computed in forward.
    exposed_seconds: float64 ``[L]``, time compute waited for copies; exposed_gradient_seconds: time
    it waited for replicas' gradients to come home; seconds: wall time.
    degraded_reason: empty when the plan was used or balancing was off.
    """

    micro_step: int
    computed_tokens: NDArray[np.int64]
    exposed_seconds: NDArray[np.float64]
    degraded_reason: str = ""
    balanced: bool = False
    host_bytes: int = 0
    peer_bytes: int = 0
    gradient_bytes: int = 0
    exposed_gradient_seconds: float = 0.0
    host_copies: int = 0
    peer_copies: int = 0
    seconds: float = 0.0

    def add(self, statistics: TransferStatistics) -> None:
        """Count what the engine did."""
        self.exposed_seconds += statistics.exposed_seconds
        self.exposed_gradient_seconds += statistics.exposed_gradient_seconds
        self.host_bytes += statistics.host_bytes
        self.peer_bytes += statistics.peer_bytes
        self.gradient_bytes += statistics.gradient_bytes
        self.host_copies += statistics.copies[Path.HOST]
        self.peer_copies += statistics.copies[Path.PEER]

    def report(self) -> MicroStepReport:
        """As the runtime takes it."""
        return MicroStepReport(
            self.micro_step,
            self.degraded_reason,
            self.computed_tokens,
            self.exposed_seconds,
            self.host_bytes,
            self.peer_bytes,
            self.gradient_bytes,
            self.host_copies,
            self.peer_copies,
            self.seconds,
            self.exposed_gradient_seconds,
        )


@dataclass(slots=True)
class MicroStepRun:
    """A micro-step under way: its agreed plan, and the next one whose copies may start already."""

    record: MicroStepRecord
    agreed: AgreedPlan | None
    upcoming: AgreedPlan | None
    acquired: dict[int, Mapping[int, Replica]] = field(default_factory=dict)
    forwarded: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)

    def is_planned_forward(self, position: int) -> bool:
        """Whether a layer's forward is the one the plan is for: the first, or its recomputation.

        Any other one computes at home: slots and gradients serve one forward and backward.
        """
        if position in self.finished:
            return False
        return position not in self.forwarded or torch._C._current_graph_task_id() != -1
