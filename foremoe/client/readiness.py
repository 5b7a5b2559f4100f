"""Whether a stage is planned, and how often to ask."""

import time
from collections.abc import Callable, Iterator

from foremoe.errors import NotReadyError, UnknownError
from foremoe.rpc.status import RuntimeStatus
from foremoe.vocabulary import Stage

Progress = Callable[[int, int], None]  # micro-steps planned, micro-steps of the stage

_FIRST_SECONDS = 0.002
_LAST_SECONDS = 0.1


class Readiness:
    """Follows the planning of one stage through snapshots of the daemon, until a deadline.

    progress is called with the first snapshot and whenever more micro-steps are planned than it
    was told of: it never goes back, also when a restarted daemon plans the stage anew.
    """

    def __init__(
        self,
        ep_group: str,
        step: int,
        stage: Stage,
        timeout_seconds: float,
        progress: Progress | None,
    ) -> None:
        self._key = (ep_group, stage)
        self._step = step
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        self._progress = progress
        self._told = -1
        self._planned = 0
        self._micro_steps = 0

    def take(self, status: RuntimeStatus) -> bool:
        """Whether all micro-steps are planned.

        Raises UnknownError for a stage without schedule, NotReadyError if planning broke off.
        """
        stages = [
            stage
            for step in status.steps
            if step.step == self._step
            for stage in step.stages
            if (stage.ep_group, stage.stage) == self._key
        ]
        if not stages:
            raise UnknownError(
                f"stage {self._key[1]} of step {self._step} has no schedule for EP group "
                f"{self._key[0]!r}; submit one first"
            )
        self._planned, self._micro_steps = stages[0].planned, stages[0].micro_steps
        if self._planned > self._told:
            self._told = self._planned
            if self._progress is not None:
                self._progress(self._planned, self._micro_steps)
        if stages[0].planning_failed:
            raise NotReadyError(
                f"planning stage {self._key[1]} of step {self._step} broke off after "
                f"{self._planned} of {self._micro_steps} micro-steps; the daemon's log says why, "
                "the others run without plans"
            )
        return self._planned == self._micro_steps

    def seconds_left(self) -> float:
        """Seconds until the deadline, and none after it."""
        return max(self._deadline - time.monotonic(), 0.0)

    def delays(self) -> Iterator[float]:
        """Seconds to wait before each further snapshot; raises NotReadyError at the deadline."""
        delay = _FIRST_SECONDS
        while (left := self.seconds_left()) > 0:
            yield min(delay, left)
            delay = min(2 * delay, _LAST_SECONDS)
        raise NotReadyError(
            f"stage {self._key[1]} of step {self._step} has plans for {self._planned} of "
            f"{self._micro_steps} micro-steps after {self._timeout_seconds} s; train without, or "
            "wait longer"
        )
