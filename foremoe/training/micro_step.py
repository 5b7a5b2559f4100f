"""What one rank knows and remembers of one micro-step."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.client.rank import MicroStepReport
from foremoe.transfer.copies import Path
from foremoe.transfer.statistics import TransferStatistics


@dataclass(slots=True)
class MicroStepRecord:
    """What happened; kept for the report to the runtime.

    computed_tokens: int64 ``[L]``, (token, expert) pairs this rank computed in forward.
    exposed_seconds: float64 ``[L]``, time compute waited for copies; exposed_gradient_seconds: time
    it waited for replicas' gradients to come home; seconds: wall time; began_unix_ns: when.
    degraded_reason: empty when the plan was used or balancing was off. dropped_replicas: of the
    whole group, because their copies would have come too late.
    """

    micro_step: int
    computed_tokens: NDArray[np.int64]
    exposed_seconds: NDArray[np.float64]
    degraded_reason: str = ""
    balanced: bool = False
    dropped_replicas: int = 0
    host_bytes: int = 0
    peer_bytes: int = 0
    gradient_bytes: int = 0
    exposed_gradient_seconds: float = 0.0
    host_copies: int = 0
    peer_copies: int = 0
    seconds: float = 0.0
    began_unix_ns: int = 0

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
            self.began_unix_ns,
        )
