"""Threads that plan give way to the daemon's answers, whatever priority the daemon has itself."""

import subprocess
import sys

import pytest

_ASK = """
import os
from foremoe.runtime.planning import PlanningPool
pool = PlanningPool(lambda problem: (), 2, lambda call: None)
niceness = lambda: os.getpriority(os.PRIO_PROCESS, 0)
print(niceness(), pool.run(niceness).result())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_planning_threads_are_nicer_than_a_daemon_that_is_nice_itself() -> None:
    """Nobody but root may go back to a higher priority."""
    command = ["nice", "-n", "7", sys.executable, "-c", _ASK]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    loop, planning = map(int, found.stdout.split())
    assert loop >= 7
    assert planning == min(loop + 5, 19)
