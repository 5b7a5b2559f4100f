"""A process of the job under test: forked with everything loaded, told what to do, watched."""

import ctypes
import faulthandler
import mmap
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from foremoe.crash_points import CrashPoint, crash_at, watch

_context = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_END_SECONDS = 10.0


class SeenPoints:
    """The crash points that any process forked with it has passed."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, len(CrashPoint))
        self._place = {point: place for place, point in enumerate(CrashPoint)}

    def note(self, point: CrashPoint) -> None:
        self._memory[self._place[point]] = 1

    def missing(self) -> list[CrashPoint]:
        return [point for point, place in self._place.items() if not self._memory[place]]


class Child:
    """``function(connection, *arguments)`` in a process of its own, which dies with this one.

    crash_at: where it will crash, empty for nowhere; seen: notes the points that it passes.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., None],
        *arguments: Any,
        log: Path,
        seen: SeenPoints,
        crash_at: str = "",
    ) -> None:
        self.name = name
        self.log = log
        self.connection, other = _context.Pipe()
        self.process = _context.Process(
            target=_main,
            args=(function, other, arguments, log, seen, crash_at),
            name=name,
            daemon=True,
        )
        self.process.start()
        other.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, message: Any) -> None:
        """A process that is gone hears nothing; ``process.sentinel`` says so."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def last_lines(self, number: int = 40) -> str:
        """What it said last, stacks included if it still runs."""
        if self.process.is_alive():
            os.kill(self.pid, signal.SIGUSR1)
            self.process.join(0.5)
        lines = self.log.read_text(errors="replace").splitlines()[-number:]
        return "\n".join((f"--- {self.name}, exit code {self.process.exitcode}:", *lines))

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal it and wait; the exit code. Raises AssertionError if it goes on."""
        if self.process.is_alive():
            os.kill(self.pid, number)
        self.process.join(_END_SECONDS)
        assert self.process.exitcode is not None, f"it does not end\n{self.last_lines()}"
        self.connection.close()
        return self.process.exitcode


def adopt_orphans() -> None:
    """Whatever our children leave running becomes our child, and so is found."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> set[int]:
    """Process ids of all children of this process."""
    return {int(pid) for pid in Path("/proc/thread-self/children").read_text().split()}


def _main(
    function: Callable[..., None],
    connection: Connection,
    arguments: tuple[Any, ...],
    log: Path,
    seen: SeenPoints,
    doomed: str,
) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.register(signal.SIGUSR1, file=2)
    watch(seen.note)
    if doomed:
        crash_at(doomed)
    function(connection, *arguments)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
