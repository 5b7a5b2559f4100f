"""Broken calls and broken files by the hundred thousand: every one is refused as it should be.

    python -m benchmarks.fuzz [--cases 100000] [--seed 0] [--seconds 900] [--json FILE]

Half of the cases are calls on a real daemon: mutated bytes, fields at extremes, messages lost,
repeated and shuffled, wrong tokens, and garbage on the socket. Each status is compared with what an
independent reading of the message allows, and what was refused must have left the daemon's status
as it was. The other half are files. A case fails with UNKNOWN or INTERNAL, with a traceback or a
path in the details, with details that name no field, and with any exception but ours; the run fails
with memory or descriptors that grow. Exits with 1 if anything failed.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.record import Record
from benchmarks.table import rows
from tests.runtime.fuzz_calls import cases
from tests.runtime.fuzz_daemon import FuzzedDaemon
from tests.runtime.fuzz_files import FuzzedFiles

GARBAGE = 0.005  # of the calls
SHOWN = 20
GROWTH_BYTES = 32 << 20  # more than 256 EP groups and the daemon's --memory-limit


def main() -> int:
    """Run the cases, print the counts and the first failures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900.0, help="stop after so long")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    record = Record("fuzz", {"cases": arguments.cases, "seed": arguments.seed})
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, FuzzedDaemon(Path(folder)) as daemon:
        files = FuzzedFiles(Path(folder))
        run(daemon, files, arguments.cases, arguments.seed, began + arguments.seconds)
        daemon.end_round()
        daemon.finish()
    failures = daemon.failures + files.failures + grown(daemon.memory, daemon.descriptors)
    counts = daemon.counts + files.counts
    print("\n".join(rows(["target", "answers", "cases"], table(counts))))
    seconds = time.monotonic() - began
    memory = [round(size / 2**20, 1) for size in (daemon.memory[0], daemon.memory[-1])]
    print(
        f"{counts.total()} cases with seed {arguments.seed} in {seconds:.0f} s, {len(failures)} "
        f"failures; the daemon's memory went from {memory[0]} to {memory[1]} MiB, its descriptors "
        f"from {daemon.descriptors[0]} to {daemon.descriptors[-1]}"
    )
    for failure in failures[:SHOWN]:
        print(failure[:600], file=sys.stderr)
    if arguments.json:
        named = {f"{target}: {answer}": count for (target, answer), count in counts.items()}
        figures = {"counts": named, "failures": failures, "seconds": seconds}
        memory_bytes = {"memory_bytes": daemon.memory, "descriptors": daemon.descriptors}
        record.write(arguments.json, figures | memory_bytes)
    return 1 if failures else 0


def run(daemon: FuzzedDaemon, files: FuzzedFiles, count: int, seed: int, deadline: float) -> None:
    """Calls and files in turns until ``count``, or until ``deadline`` on the monotonic clock."""
    chance, draw = random.Random(seed), cases(seed)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("cases", total=count)
        for number in range(count):
            if number % 2:
                files.run(chance)
            elif chance.random() < GARBAGE:
                daemon.send_garbage(chance)
            else:
                daemon.run(draw())
            if number % 100 == 0:
                bar.update(task, completed=number)
                if time.monotonic() > deadline:
                    return


def grown(memory: Sequence[int], descriptors: Sequence[int]) -> list[str]:
    """What has grown from the first round to the last."""
    faults = []
    if memory[-1] > memory[0] + GROWTH_BYTES:
        faults.append(f"the daemon's memory grew from {memory[0]} to {memory[-1]} bytes")
    if descriptors[-1] > descriptors[0] + 1:
        faults.append(f"the daemon's descriptors grew from {descriptors[0]} to {descriptors[-1]}")
    return faults


def table(counts: Counter[tuple[str, str]]) -> list[list[str]]:
    """One row for each target: how often it got each answer."""
    lines = []
    for target in sorted({target for target, _ in counts}):
        answers = {answer: n for (name, answer), n in sorted(counts.items()) if name == target}
        named = ", ".join(f"{answer} {n}" for answer, n in answers.items())
        lines.append([target, named, str(sum(answers.values()))])
    return lines


if __name__ == "__main__":
    sys.exit(main())
