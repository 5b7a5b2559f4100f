"""Ends: nothing that the demo starts outlives it, whatever ends it, and it ends in one line."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def interrupt_at_end_signals() -> None:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does."""
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)


def die_with_parent() -> None:
    """End this process when the one that started it does, also by kill -9; Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_supervisor() -> None:
    """The same for a process that multiprocessing started: its parent may be the fork server."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None

    def watch() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="foremoe-supervisor", daemon=True).start()


@contextmanager
def end_signals_held() -> Iterator[None]:
    """They arrive after the block: a process that is half started cannot be ended cleanly."""
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda one, _: arrived.append(one)) for number in ENDING
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(signal.Signals(arrived[0]))


@contextmanager
def end_signals_blocked() -> Iterator[None]:
    """Processes started inside never get them; a terminal sends them to all of a job's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
