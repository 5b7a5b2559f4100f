"""How long to wait before an idempotent call is made again."""

import time
from collections.abc import Iterator

FIRST_SECONDS = 0.05
LAST_SECONDS = 1.0


def retry_delays(limit_seconds: float) -> Iterator[float]:
    """Seconds to wait before each further attempt, doubling; ends after ``limit_seconds``."""
    deadline = time.monotonic() + limit_seconds
    delay = FIRST_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        yield min(delay, left)
        delay = min(2 * delay, LAST_SECONDS)
