"""What the ranks of one stage said happened."""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.imbalance import imbalance
from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.status import PathStatus, RankStatus
from foremoe.rpc.timeline import MAX_SPANS, TIMELINE_RANKS, Timeline
from foremoe.vocabulary import DegradedReason

BUSIEST_RANKS = 8
LARGEST = 2**64 - 1  # that a status can say
_REASONS = tuple(DegradedReason)


class StageReports:
    """At most one report per rank and micro-step counts.

    computed_tokens: int64 ``[M, L, P]``. exposed_seconds: float64 ``[L, P]``, over micro-steps.
    exposed_gradient_seconds, seconds: float64 ``[P]``, over micro-steps.
    began_unix_ns: int64 ``[M]``, when the first rank began each, 0 where none has said.
    timelines: what the first ranks recorded, by rank.
    """

    def __init__(self, micro_steps: int, layers: int, ranks: int) -> None:
        self._reported = np.zeros((ranks, micro_steps), bool)
        self._reasons = np.zeros((micro_steps, len(_REASONS)), bool)
        self.computed_tokens = np.zeros((micro_steps, layers, ranks), np.int64)
        self.exposed_seconds = np.zeros((layers, ranks))
        self.exposed_gradient_seconds = np.zeros(ranks)
        self.seconds = np.zeros(ranks)
        self.began_unix_ns = np.zeros(micro_steps, np.int64)
        self.timelines: dict[int, Timeline] = {}
        self._copies = {"host": 0, "peer": 0, "gradient": 0}
        self._bytes = dict(self._copies)
        self._layer_imbalance: NDArray[np.float64] | None = None

    @staticmethod
    def stored_bytes(micro_steps: int, layers: int, ranks: int) -> int:
        """What the arrays of a stage take."""
        timelines = min(ranks, TIMELINE_RANKS) * MAX_SPANS * 5 * 4
        by_micro_step = layers * ranks * 8 + ranks + len(_REASONS) + 8
        return micro_steps * by_micro_step + (layers + 2) * ranks * 8 + timelines

    @property
    def any_reported(self) -> bool:
        return bool(self._reported.any())

    @property
    def all_reported(self) -> bool:
        return bool(self._reported.all())

    @property
    def reported(self) -> int:
        """Micro-steps that every rank has reported."""
        return int(np.count_nonzero(self._reported.all(axis=0)))

    @property
    def degraded(self) -> int:
        """Micro-steps that some rank ran without the plan."""
        return int(np.count_nonzero(self._reasons.any(axis=1)))

    @property
    def degraded_reasons(self) -> dict[str, int]:
        """Degraded micro-steps by reason, each counted once, under a cause rather than a result."""
        first = np.argmax(self._reasons[self._reasons.any(axis=1)], axis=1)
        counts = np.bincount(first, minlength=len(_REASONS))
        return {str(_REASONS[i]): int(counts[i]) for i in np.flatnonzero(counts)}

    @property
    def agreement_misses(self) -> int:
        """Micro-steps whose plan some rank held and another one did not."""
        column = self._reasons[:, _REASONS.index(DegradedReason.OTHER_RANK)]
        return int(np.count_nonzero(column))

    @property
    def rank_exposed_seconds(self) -> NDArray[np.float64]:
        """Time each rank's compute waited for copies and gradients: ``[P]``."""
        copies: NDArray[np.float64] = self.exposed_seconds.sum(axis=0)
        return copies + self.exposed_gradient_seconds

    @property
    def layer_imbalance(self) -> NDArray[np.float64]:
        """Mean over micro-steps of what was computed: ``[L]``; zeros until all have reported."""
        if not self.all_reported:
            return np.zeros(len(self.exposed_seconds))
        if self._layer_imbalance is None:
            measured: NDArray[np.float64] = np.mean(imbalance(self.computed_tokens), axis=0)
            self._layer_imbalance = measured
        return self._layer_imbalance

    def paths(self) -> tuple[PathStatus, ...]:
        return tuple(
            PathStatus(path, min(copies, LARGEST), min(self._bytes[path], LARGEST))
            for path, copies in self._copies.items()
        )

    def busiest_ranks(self) -> tuple[RankStatus, ...]:
        """The ranks that computed most, at most BUSIEST_RANKS, busiest first."""
        tokens = self.computed_tokens.sum(axis=(0, 1))
        mean = max(float(tokens.mean()), 1.0)
        return tuple(
            RankStatus(
                rank=int(rank),
                relative_load=float(tokens[rank]) / mean,
                exposed_seconds=float(self.rank_exposed_seconds[rank]),
                seconds=float(self.seconds[rank]),
            )
            for rank in np.argsort(-tokens, kind="stable")[:BUSIEST_RANKS]
        )

    def add(self, rank: int, report: MicroStepReport) -> None:
        """A second report of the same micro-step by the same rank changes nothing."""
        index = report.micro_step
        if self._reported[rank, index]:
            return
        self._reported[rank, index] = True
        if report.degraded_reason:
            self._reasons[index, _REASONS.index(_known(report.degraded_reason))] = True
        self.computed_tokens[index, :, rank] = report.computed_tokens
        self.exposed_seconds[:, rank] += report.exposed_seconds
        self.exposed_gradient_seconds[rank] += report.exposed_gradient_seconds
        self.seconds[rank] += report.seconds
        if report.began_unix_ns:
            earlier = int(self.began_unix_ns[index])
            self.began_unix_ns[index] = min(report.began_unix_ns, earlier or report.began_unix_ns)
        self._copies["host"] += report.host_copies
        self._copies["peer"] += report.peer_copies
        self._bytes["host"] += report.host_bytes
        self._bytes["peer"] += report.peer_bytes
        self._bytes["gradient"] += report.gradient_bytes

    def add_timeline(self, rank: int, timeline: Timeline) -> None:
        """Of the first ranks; a second one by the same rank changes nothing."""
        if rank < TIMELINE_RANKS and rank not in self.timelines:
            self.timelines[rank] = timeline


def _known(reason: str) -> DegradedReason:
    """Reasons become labels of metrics, so their number is bounded."""
    return DegradedReason(reason) if reason in _REASONS else DegradedReason.OTHER
