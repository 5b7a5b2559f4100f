"""The command of benchmarks/faults.py in a short form: docs/operations.md says what it does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foremoe.crash_points import CrashPoint, crash_at, watch
from foremoe.errors import InvalidInputError

ROOT = Path(__file__).parents[2]
SECONDS = 110.0


def test_training_survives_whatever_dies() -> None:
    """Every crash point is passed; some of them, and random moments, are died at."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--runs", "10", "--sample", "3", "--seed", "2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


@pytest.mark.parametrize("where", ["nowhere", "runtime.planned:x", "runtime.planned:0"])
def test_a_crash_point_that_is_none_is_refused(where: str) -> None:
    with pytest.raises(InvalidInputError, match=r"FOREMOE_CRASH_AT: .* is not POINT:N"):
        crash_at(where)


def test_a_crash_point_is_named_by_the_environment() -> None:
    code = "from foremoe.crash_points import *; [print(crash_point(p)) for p in CrashPoint]"
    point = f"{CrashPoint.LISTENING}:1"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"FOREMOE_CRASH_AT": point}, timeout=60
    )
    assert done.returncode == -9
    watch(None)
