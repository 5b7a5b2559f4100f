"""The demo ends with all it started, whatever ends it and when."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "foremoe", "demo", "--steps", "1"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def descendants(pid: int) -> set[int]:
    """All processes that ``pid`` started, and they, and so on."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            text = Path(f"/proc/{one}/task/{one}/children").read_text()
        except OSError:  # it has ended
            continue
        children = [int(child) for child in text.split()]
        found.update(children)
        waiting += children
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that have not ended; one that nobody has waited for has."""
    states = {}
    for pid in pids:
        try:
            states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return {pid for pid, state in states.items() if state != "Z"}


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    """The command, in a session of its own, as a terminal would have it."""
    with (
        tempfile.TemporaryDirectory() as folder,  # the test's own is too deep for a socket
        subprocess.Popen(
            COMMAND,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENV, "TMPDIR": folder},
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            for pid in alive(descendants(process.pid) | {process.pid}):
                os.kill(pid, signal.SIGKILL)


def wait_for_processes(process: subprocess.Popen[str], count: int) -> set[int]:
    """Those the demo has started, once they are ``count``: daemon, tracker, fork server, ranks."""
    deadline = time.monotonic() + 60
    while len(found := descendants(process.pid)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def wait_for_end(pids: set[int]) -> None:
    deadline = time.monotonic() + 30
    while left := alive(pids):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_the_end_of_a_terminal_while_ranks_start_is_one_line(demo: subprocess.Popen[str]) -> None:
    started = wait_for_processes(demo, 3)
    os.killpg(demo.pid, signal.SIGHUP)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert errors == "foremoe demo: interrupted\n"
    wait_for_end(started)


def test_kill_9_ends_daemon_and_ranks(demo: subprocess.Popen[str]) -> None:
    started = wait_for_processes(demo, 5)
    demo.kill()
    wait_for_end(started)
