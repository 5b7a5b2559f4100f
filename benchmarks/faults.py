"""Crashes at every crash point, and kill -9 at random moments, of a training job: the same numbers.

A job of two ranks, a leader, a follower and a controller trains small RL steps. In each run one
process is killed, told to drain, or made to crash at a named point, and is started again. After
each run the losses and gradients of all steps are those of a dense run without ForeMoE, nothing has
hung, the next step is balanced, and nothing is left in shared memory, of sockets or processes.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import numpy as np
import torch

from benchmarks.record import Record
from foremoe.crash_points import CrashPoint
from foremoe.runtime.daemon import warm_up as warm_up_daemon
from foremoe.transfer.schedule.micro_step import warm_up as warm_up_copies
from tests.faults.child import adopt_orphans
from tests.faults.clock import has_clock, restart_with_clock
from tests.faults.job import CLOCK, DAEMONS, NOTHING, Fault, Job
from tests.faults.tmpfs import small_tmpfs, some_tmpfs

ANNOUNCE_SECONDS = 0.06
VICTIMS = (*["leader"] * 4, *["follower"] * 3, "rank 0", "rank 1", *["controller"] * 2, CLOCK)
JUMPS = (-(10**9), -3600, -5, 5, 3600, 10**9)  # seconds
TMPFS = "4m"
OF_FOLLOWER = ("leader_found", "relaying")


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = "1"
    restart_with_clock()
    with tempfile.TemporaryDirectory() as name, ExitStack() as mounted:
        folder = Path(name)
        torch.set_num_threads(1)
        adopt_orphans()
        warm_up_daemon("foremoe")
        warm_up_copies()
        torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # imports a lot; before the forks
        record = Record("faults", {"runs": options.runs, "seed": options.seed})
        own = mounted.enter_context(small_tmpfs(folder, TMPFS))
        job = Job(folder, own or mounted.enter_context(some_tmpfs()), options.seed)
        try:
            job.start()
            figures = _figures(job, options, has_own_tmpfs=own is not None)
            job.close()
        finally:
            job.kill()
    print(figures)
    if options.json is not None:
        record.write(options.json, figures)


def _figures(job: Job, options: argparse.Namespace, has_own_tmpfs: bool) -> dict[str, Any]:
    """What was done; AssertionError at the first run that is not as it should be."""
    job.run(NOTHING)
    began = time.monotonic()
    job.run(NOTHING)
    typical_seconds = time.monotonic() - began
    job.run(Fault("leader", typical_seconds / 2, signal=SIGTERM))
    assert not job.seen.missing(), f"points that no run passes: {job.seen.missing()}"
    if has_own_tmpfs:
        job.run_without_room()
    else:
        print("not done: no tmpfs can be mounted here, so none was full")
    if has_clock():
        for seconds in (3600, -(10**9)):
            job.run(Fault(CLOCK, typical_seconds / 2, jump_seconds=seconds))
    else:
        print("not done: there is no C compiler for a clock that jumps")
    points = _points(options)
    for point in points:
        _say(job, "point", fault_at(point))
    faults: Counter[str] = Counter()
    for index in [options.only] if options.only is not None else range(options.runs):
        fault = random_fault(options.seed, index, typical_seconds)
        _say(job, f"run {index}", fault)
        faults[fault.victim] += 1
    return {"typical_seconds": typical_seconds, "points": len(points), "runs": dict(faults)}


def _say(job: Job, what: str, fault: Fault) -> None:
    began = time.monotonic()
    run = job.run(fault)
    print(
        f"{what}: {fault}: {run.degraded} micro-steps degraded, {time.monotonic() - began:.2f} s",
        *run.troubles,
        sep="; ",
        flush=True,
    )


def fault_at(point: CrashPoint) -> Fault:
    """A crash there, of the process that passes it."""
    room, _, name = point.partition(".")
    if room == "transfer":
        return Fault("rank 0" if point is CrashPoint.CACHE_CREATED else "rank 1", crash_at=point)
    victim = "follower" if name.startswith(OF_FOLLOWER) else "leader"
    if point is CrashPoint.DRAINING:
        return Fault(victim, 0.02, point, SIGTERM)
    return Fault(victim, crash_at=point)


def random_fault(seed: int, index: int, typical_seconds: float) -> Fault:
    """Who, when and how, the same for the same seed and index but for the run's length."""
    chance = np.random.default_rng([seed, index])
    victim = str(chance.choice(VICTIMS))
    after_seconds = float(chance.random())
    after_seconds *= ANNOUNCE_SECONDS if victim == "controller" else typical_seconds
    if victim == CLOCK and has_clock():
        return Fault(CLOCK, after_seconds, jump_seconds=int(chance.choice(JUMPS)))
    if victim == CLOCK:
        victim = "leader"
    drains = victim in DAEMONS and chance.random() < 0.2
    return Fault(victim, after_seconds, signal=SIGTERM if drains else SIGKILL)


def _points(options: argparse.Namespace) -> list[CrashPoint]:
    chosen = [p for p in CrashPoint if options.points in ("all", p.split(".")[0], p)]
    if options.sample is None:
        return chosen
    taken = np.random.default_rng(options.seed).permutation(len(chosen))[: options.sample]
    return [chosen[index] for index in sorted(taken)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="with a fault at a random moment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="RUN", help="repeat this one of the runs")
    parser.add_argument(
        "--points", default="all", help="to crash at: all, none, runtime, transfer or one's name"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="only N of these points, by seed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
