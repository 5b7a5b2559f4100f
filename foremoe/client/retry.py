"""How often and how long a client tries."""

import math
import time

FIRST_DELAY_SECONDS = 0.05
LAST_DELAY_SECONDS = 1.0
LEAST_TIMEOUT_SECONDS = 1.0


class Attempts:
    """The attempts of one call: how long each may take, and the doubling delays between them.

    retry_seconds: how long, in all, attempts may fail in vain: from one failure to the next, unless
    the attempt between them got further than any before it. limit_seconds: none ends later than
    that by more than a second.
    """

    def __init__(
        self, timeout_seconds: float, retry_seconds: float, limit_seconds: float = math.inf
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._end = time.monotonic() + limit_seconds
        self._delay = FIRST_DELAY_SECONDS
        self._furthest = -1
        self._failed_at = 0.0

    def timeout_seconds(self) -> float:
        """Of the attempt that is made now."""
        left = self._end - time.monotonic()
        return min(self._timeout_seconds, max(left, LEAST_TIMEOUT_SECONDS))

    def delay(self, progress: int = 0) -> float | None:
        """Seconds to wait before the next attempt; None when there should be none.

        progress: how far the attempt came that has failed just now.
        """
        now = time.monotonic()
        if progress > self._furthest:
            self._furthest, self._delay = progress, FIRST_DELAY_SECONDS
        else:
            self._retry_seconds -= now - self._failed_at
        self._failed_at = now
        left = min(self._retry_seconds, self._end - now)
        if left <= 0:
            return None
        delay = min(self._delay, left)
        self._delay = min(2 * self._delay, LAST_DELAY_SECONDS)
        return delay
