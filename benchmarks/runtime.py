"""The daemon under the load of a large job: throughput, latency, memory, and a day of steps.

    python -m benchmarks.runtime [--quick] [--json FILE] [--markdown FILE]

What the load is: ``runtime_load.py``; what a day is: ``runtime_soak.py``. Everything runs on this
machine, clients too, so the daemon shares the cores with them. Uploads are compared with the same
bytes through as many plain unix sockets, pings with an echo between processes without our code.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import runtime_soak
from benchmarks.record import Record
from benchmarks.runtime_load import (
    CONTROLLERS,
    EXPERTS,
    GROUP,
    LAYERS,
    RANKS,
    SCHEDULE,
    SEQUENCE_BYTES,
    SEQUENCES,
    TOP_K,
    Controllers,
    Pinger,
    Upload,
    frozen_reader,
    histograms,
    plain_copy,
)
from benchmarks.runtime_process import MeasuredDaemon
from benchmarks.runtime_ranks import Ranks, StageTimes
from benchmarks.runtime_soak import Soak
from benchmarks.table import Aim, aims_table, rows
from foremoe.client import ControllerClient
from foremoe.demo.machine import describe_machine
from foremoe.errors import ExhaustedError
from foremoe.vocabulary import Stage

MEMORY_LIMIT = 256 << 20
PACE_SECONDS = 0.1  # of a micro-step, far below what 16,384 tokens a rank take
STEP_SECONDS = 1.0  # of an RL step while controllers upload, far below any real one
IDLE_SECONDS = 2.0
WARM_REFUSALS, REFUSALS = 3, 10
OWN_STEP = 1_000_000  # steps that are planned meanwhile; the controllers' begin at 1
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done; id_sequences of the whole step's, in each of id_steps."""

    histogram_steps: int
    id_steps: int
    id_sequences: int
    soak_steps: int


FULL = Sizes(histogram_steps=20, id_steps=2, id_sequences=SEQUENCES, soak_steps=10_000)
QUICK = Sizes(histogram_steps=3, id_steps=1, id_sequences=64, soak_steps=300)


@dataclass(frozen=True, slots=True)
class Pings:
    """Seconds of the daemon's answers and of the echo's in one phase."""

    phase: str
    count: int
    p50: float
    p99: float
    longest: float
    echo_p50: float
    echo_p99: float


@dataclass(frozen=True, slots=True)
class Plans:
    """Seconds after the submission, over stages and ranks, and what a paced group would see."""

    phase: str
    stages: int
    first_p50: float
    first_p99: float
    interval_p50: float
    interval_p99: float
    last_p50: float
    last_p99: float
    fewest_ahead: int
    waited: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the daemon, in bytes. full: with as many sequences as it takes, after refusals."""

    limit: int
    idle: int
    idle_peak: int
    peak_under_load: int
    peak_when_full: int
    stored_when_full: int
    full: int
    after_refusals: int
    refusals: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured."""

    uploads: list[Upload]
    plain_bytes_per_second: float
    pings: list[Pings]
    plans: list[Plans]
    memory: Memory
    soak: Soak


def main() -> None:
    """Measure, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="in place of the terminal")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    record = Record("runtime", {"memory_limit": MEMORY_LIMIT, **asdict(sizes)})
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("") as status:
        figures = measure(Path(folder), sizes, status.update)
    aims = list(runtime_aims(figures))
    lines = [f"Machine: {describe_machine()}.", "", *tables(figures), *aims_table(aims)]
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines))
    else:
        print("\n".join(lines))
    if arguments.json:
        found = [{**asdict(aim), "reached": aim.reached} for aim in aims]
        record.write(arguments.json, {"aims": found, **asdict(figures)})


def measure(folder: Path, sizes: Sizes, say: Callable[[str], None]) -> Figures:
    """Everything, in a few minutes."""
    say("a day of short steps")
    days = folder / "day"
    days.mkdir(mode=0o700)
    with MeasuredDaemon(days) as daemon:
        soak = runtime_soak.run(daemon, sizes.soak_steps)
    say("plain sockets")
    ids_bytes = sizes.id_sequences * SEQUENCE_BYTES["ids"]
    plain = plain_copy(folder, ids_bytes)
    load = folder / "load"
    load.mkdir(mode=0o700)
    with MeasuredDaemon(load, "--memory-limit", str(MEMORY_LIMIT)) as daemon:
        return _under_load(_Load(daemon, load), sizes, soak, plain, say)


def _under_load(
    load: "_Load", sizes: Sizes, soak: Soak, plain: float, say: Callable[[str], None]
) -> Figures:
    daemon = load.daemon
    with frozen_reader(daemon.address):
        load.plan_step()  # everything has been used once
        idle, idle_peak = daemon.resident_bytes(), daemon.peak_bytes()
        say("idle")
        with load.phase("idle"):
            time.sleep(IDLE_SECONDS)
        say("plans alone")
        with load.phase("steps back to back"):
            for _ in range(sizes.histogram_steps):
                load.plan_step()
        say("histograms")
        with load.phase("histograms"):
            load.upload("histograms", SEQUENCES, sizes.histogram_steps)
        say("expert ids")
        with load.phase("expert ids"):
            load.upload("ids", sizes.id_sequences, sizes.id_steps)
        peak = daemon.peak_bytes()
        say("memory limit")
        filled = load.fill()
        memory = Memory(MEMORY_LIMIT, idle, idle_peak, peak, daemon.peak_bytes(), *filled)
    return Figures(load.uploads, plain, load.pings(), load.plans(), memory, soak)


class _Load:
    """All clients of one daemon."""

    def __init__(self, daemon: MeasuredDaemon, folder: Path) -> None:
        self.daemon = daemon
        self.uploads: list[Upload] = []
        self._phases: dict[str, tuple[float, float]] = {}
        self._stages: dict[str, list[StageTimes]] = {}
        self._phase = ""
        self._own_step, self._step = OWN_STEP, 1
        self._client = ControllerClient(daemon.address, timeout_seconds=120)
        self._counts = histograms(SEQUENCES)
        self._controllers = Controllers(daemon.address)
        self._ranks = Ranks(daemon.address)
        self._pinger = Pinger(daemon.address, folder)

    def phase(self, name: str) -> "_Load":
        self._phase = name
        return self

    def __enter__(self) -> None:
        self._phases[self._phase] = (time.monotonic(), 0.0)

    def __exit__(self, *_: object) -> None:
        self._phases[self._phase] = (self._phases[self._phase][0], time.monotonic())
        self._phase = ""

    def plan_step(self) -> None:
        """A whole step: foresight, both stages planned and reported, released."""
        self._own_step += 1
        step = self._own_step
        with self._client.foresight_stream(step, range(LAYERS), EXPERTS, TOP_K) as stream:
            for index, counts in enumerate(self._counts):
                stream.add(f"s{index}", histogram=counts)
        for number, stage in enumerate(Stage, start=1):
            submitted = time.monotonic()
            self._client.submit_schedule(GROUP.ep_group, step, stage, SCHEDULE)
            times = self._ranks.wait(step, number, submitted)
            self._stages.setdefault(self._phase, []).append(times)
        self._client.release_step(step)

    def upload(self, kind: str, sequences: int, steps: int) -> None:
        """The controllers upload step after step, while other steps are planned and reported."""

        def work() -> None:
            for _ in range(steps):
                self._step += 1
                self.uploads.append(self._controllers.upload(self._step, kind, sequences))
                self._client.release_step(self._step)

        with ThreadPoolExecutor(1) as pool:
            uploading = pool.submit(work)
            while not uploading.done():
                next_step = time.monotonic() + STEP_SECONDS
                self.plan_step()
                wait([uploading], max(next_step - time.monotonic(), 0.0))
            uploading.result()

    def fill(self) -> tuple[int, int, int, int]:
        """Upload until nothing more is taken, three times, and then some; see Memory."""
        first = self._step = self._step + 1
        refusals = 0
        full = 0
        while refusals < WARM_REFUSALS + REFUSALS:
            try:
                self._controllers.upload(self._step, "histograms", SEQUENCES)
                self._step += 1
            except ExhaustedError:
                refusals += 1
                if refusals == WARM_REFUSALS:
                    full = self.daemon.resident_bytes()
        after, stored = self.daemon.resident_bytes(), self._client.status().stored_bytes
        for step in range(first, self._step + 1):
            self._client.release_step(step)
        return stored, full, after, REFUSALS

    def pings(self) -> list[Pings]:
        """Of all phases; ends the clients."""
        found = self._pinger.stop()
        self._controllers.close()
        self._ranks.close()
        self._client.close()
        return [
            _pings(phase, found[(found[:, 0] >= began) & (found[:, 0] < ended)])
            for phase, (began, ended) in self._phases.items()
        ]

    def plans(self) -> list[Plans]:
        """Of the phases in which stages were planned."""
        return [_plans(phase, times) for phase, times in self._stages.items() if phase]


def _pings(phase: str, found: NDArray[np.float64]) -> Pings:
    answers, echoes = found[:, 1], found[:, 2]
    p50, p99 = np.quantile(answers, [0.5, 0.99])
    echo_p50, echo_p99 = np.quantile(echoes, [0.5, 0.99])
    numbers = map(float, (p50, p99, answers.max(), echo_p50, echo_p99))
    return Pings(phase, len(found), *numbers)


def _plans(phase: str, times: list[StageTimes]) -> Plans:
    first = np.concatenate([stage.first for stage in times])
    intervals = np.concatenate([stage.intervals() for stage in times])
    last = [stage.last for stage in times]
    ahead, waited = zip(*(stage.ahead(PACE_SECONDS) for stage in times), strict=True)
    first_p50, first_p99 = map(float, np.quantile(first, [0.5, 0.99]))
    interval_p50, interval_p99 = map(float, np.quantile(intervals, [0.5, 0.99]))
    last_p50, last_p99 = map(float, np.quantile(last, [0.5, 0.99]))
    return Plans(
        phase=phase,
        stages=len(times),
        first_p50=first_p50,
        first_p99=first_p99,
        interval_p50=interval_p50,
        interval_p99=interval_p99,
        last_p50=last_p50,
        last_p99=last_p99,
        fewest_ahead=min(ahead),
        waited=max(waited),
    )


def runtime_aims(figures: Figures) -> Iterator[Aim]:
    """What the daemon is to keep to."""
    for pings in figures.pings:
        yield Aim(f"ping p99, {pings.phase}: ms", 20, 1e3 * pings.p99, "{:.1f}")
    for plans in figures.plans:
        name = f"waited for plans after the first at {PACE_SECONDS * 1e3:.0f} ms a micro-step"
        yield Aim(f"{name}, {plans.phase}: ms", 0, 1e3 * plans.waited, "{:.1f}")
    memory = figures.memory
    bound = (memory.idle_peak + memory.limit) / MIB
    yield Aim("peak memory under load: MiB", bound, memory.peak_under_load / MIB, "{:.0f}")
    yield Aim("peak memory when full: MiB", bound, memory.peak_when_full / MIB, "{:.0f}")
    growth = memory.after_refusals / memory.full
    yield Aim(f"memory after {memory.refusals} refused uploads / before", 1.02, growth, "{:.3f}")
    soak = figures.soak
    yield Aim(f"memory over {soak.steps} steps, last / first", 1.02, soak.memory_growth, "{:.3f}")
    yield Aim(f"memory over {soak.steps} steps, most / least", 1.02, soak.memory_range, "{:.3f}")
    yield Aim(f"descriptors over {soak.steps} steps", 0, soak.descriptor_growth, "{:.0f}")


def tables(figures: Figures) -> list[str]:
    """Uploads, plans, pings."""
    plain = figures.plain_bytes_per_second
    lines = [
        f"Plain unix sockets carry {plain / 1e9:.2f} GB/s. {RANKS} ranks, {CONTROLLERS} "
        f"controllers; a day is {figures.soak.steps} steps in {figures.soak.seconds:.0f} s.",
        "",
    ]
    lines += rows(
        ["upload of", "sequences", "seconds", "MB/s", "of plain", "sequences/s"],
        [
            [one.kind, str(one.sequences), f"{one.ended - one.began:.2f}",
             f"{one.bytes_per_second / 1e6:.0f}", f"{one.bytes_per_second / plain:.0%}",
             f"{one.sequences / (one.ended - one.began):.0f}"]
            for one in _medians(figures.uploads)
        ],
    )  # fmt: skip
    lines += rows(
        ["ms after submission", "stages", "first plan p50, p99", "between plans p50, p99",
         "last plan p50, p99", "fewest plans ahead"],
        [
            [one.phase, str(one.stages), _pair(one.first_p50, one.first_p99),
             _pair(one.interval_p50, one.interval_p99), _pair(one.last_p50, one.last_p99),
             str(one.fewest_ahead)]
            for one in figures.plans
        ],
    )  # fmt: skip
    lines += rows(
        ["pings, ms", "count", "p50, p99", "longest", "echo p50, p99"],
        [
            [one.phase, str(one.count), _pair(one.p50, one.p99), f"{one.longest * 1e3:.1f}",
             f"{one.echo_p50 * 1e3:.2f}, {one.echo_p99 * 1e3:.2f}"]
            for one in figures.pings
        ],
    )  # fmt: skip
    return lines


def _medians(uploads: list[Upload]) -> Iterator[Upload]:
    """The step of each kind whose speed is the median."""
    for kind in dict.fromkeys(upload.kind for upload in uploads):
        ordered = sorted((one for one in uploads if one.kind == kind), key=_speed)
        yield ordered[len(ordered) // 2]


def _speed(upload: Upload) -> float:
    return upload.bytes_per_second


def _pair(low: float, high: float) -> str:
    return f"{low * 1e3:.1f}, {high * 1e3:.1f}"


if __name__ == "__main__":
    main()
