"""Points at which a process can be made to die, to see what a crash there leaves behind.

``FOREMOE_CRASH_AT=runtime.planned:2`` kills the process with SIGKILL when it passes that point for
the second time. Without it a point costs a comparison.
"""

import os
import signal
import threading
from collections.abc import Callable
from enum import StrEnum

from foremoe.errors import InvalidInputError

VARIABLE = "FOREMOE_CRASH_AT"


class CrashPoint(StrEnum):
    """What has just happened when the point is passed; nobody has been told of it yet."""

    LISTENING = "runtime.listening"
    REGISTERED = "runtime.registered"
    STREAMING = "runtime.streaming"
    STAGED = "runtime.staged"
    COMMITTED = "runtime.committed"
    SCHEDULED = "runtime.scheduled"
    PLANNING = "runtime.planning"
    PUBLISHED = "runtime.published"
    PLANNED = "runtime.planned"
    EXECUTING = "runtime.executing"
    RELEASED = "runtime.released"
    DRAINING = "runtime.draining"
    LEADER_FOUND = "runtime.leader_found"
    RELAYING_CALL = "runtime.relaying_call"
    RELAYING_UPLOAD = "runtime.relaying_upload"
    RELAYING_PLAN = "runtime.relaying_plan"

    CACHE_CREATED = "transfer.cache_created"
    CACHE_ATTACHED = "transfer.cache_attached"
    CACHE_WRITING = "transfer.cache_writing"
    CACHE_WRITTEN = "transfer.cache_written"
    GENERATION = "transfer.generation"
    PROMISED = "transfer.promised"
    ISSUED = "transfer.issued"
    SLOT_FILLING = "transfer.slot_filling"
    SLOT_READY = "transfer.slot_ready"
    SLOT_IN_USE = "transfer.slot_in_use"
    SLOT_OWING = "transfer.slot_owing"
    SLOT_GRADS = "transfer.slot_grads"
    SLOT_FREE = "transfer.slot_free"
    GRADIENTS_ARRIVED = "transfer.gradients_arrived"
    GRADIENTS_HOME = "transfer.gradients_home"
    HOMES_STAGED = "transfer.homes_staged"
    HOMES_COMMITTED = "transfer.homes_committed"
    HOMES_MOVED = "transfer.homes_moved"


_passed: Callable[[CrashPoint], None] | None = None


def crash_point(point: CrashPoint) -> None:
    """Die here if this is the point and the passing."""
    if _passed is not None:
        _passed(point)


def watch(passed: Callable[[CrashPoint], None] | None) -> None:
    """Have ``passed`` called, on any thread, at every point of this process; None for nobody."""
    global _passed
    _passed = passed


def crash_at(where: str) -> None:
    """Let this process die at ``POINT:N``, or at the first passing of ``POINT``.

    Raises InvalidInputError for what is no such place.
    """
    name, _, number = where.partition(":")
    try:
        doomed, left = CrashPoint(name), int(number or 1)
        if left < 1:
            raise ValueError(number)
    except ValueError:
        raise InvalidInputError(
            f"{VARIABLE}: {where!r} is not POINT:N; points are {', '.join(CrashPoint)}"
        ) from None
    counting = threading.Lock()

    def passed(point: CrashPoint) -> None:
        nonlocal left
        if point is doomed:
            with counting:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    watch(passed)


if _from_environment := os.environ.get(VARIABLE):
    crash_at(_from_environment)
