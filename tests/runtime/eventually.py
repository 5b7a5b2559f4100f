"""Waiting for another process to get somewhere."""

import time
from collections.abc import Callable

LONGEST_SECONDS = 30.0


def eventually(condition: Callable[[], bool]) -> None:
    """Return as soon as ``condition()`` holds; fail when it does not within LONGEST_SECONDS."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.002)  # leaves the processor to the process that is waited for
