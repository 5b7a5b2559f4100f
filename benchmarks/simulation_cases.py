"""What is simulated for the headline table and for the plots."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner_loads import TRACES
from foremoe.foresight.trace import load_trace
from foremoe.simulation.cluster import Machine, machine
from foremoe.simulation.contest import CONTESTANTS
from foremoe.simulation.step import (
    Drawing,
    Loads,
    Outcome,
    Schedule,
    heat_loads,
    simulate_step,
    trace_loads,
    workload_loads,
)

CLUSTER = "h100x64"
SCHEDULE = Schedule(mini_batches=2, micro_steps=4)
SLOTS, TARGET = 2, None  # by time
TOKENS = 16384  # of a rank in a micro-step
PLOTTED = ("EPLB oracle", "critical path", "node-confined", "foremoe")
CURVE_POINTS = 17


@dataclass(frozen=True, slots=True)
class Case:
    """A model on 64 ranks; routing: ``trace``, ``heat`` or ``drawn``."""

    model: str
    ep_size: int
    routing: str

    @property
    def name(self) -> str:
        return f"{self.model}, EP {self.ep_size}, {self.routing}"


CASES = (
    Case("gpt-oss-20b", 8, "trace"),
    Case("gpt-oss-20b", 16, "trace"),
    Case("gpt-oss-120b", 16, "drawn"),
    Case("qwen3-30b-a3b", 8, "heat"),
    Case("qwen3-30b-a3b", 32, "heat"),
    Case("qwen3-235b-a22b", 32, "heat"),
    Case("qwen3-235b-a22b", 64, "heat"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve: the speedup of a policy where ``axis`` is ``value``."""

    axis: str
    value: float
    policy: str
    speedup: float
    of_ideal: float


def outcomes(case: Case) -> list[Outcome]:
    """Every policy's step."""
    on = machine(case.model, CLUSTER, case.ep_size)
    return _simulate(on, _loads(case, on), list(CONTESTANTS))


def _simulate(on: Machine, loads: Loads, names: Sequence[str]) -> list[Outcome]:
    workers = min(on.groups, os.cpu_count() or 1)
    return simulate_step(
        on, loads, SCHEDULE, slots=SLOTS, target=TARGET, names=names, workers=workers
    )


def _loads(case: Case, on: Machine) -> Loads:
    if case.routing == "trace":
        histograms = load_trace(TRACES / "gpt_oss_20b.npz").histograms()
        return trace_loads(histograms, on, SCHEDULE, 16 * on.ep_size)
    drawing = Drawing(TOKENS, on.ep_size, 0)
    if case.routing == "drawn":
        return workload_loads("dirichlet", on, SCHEDULE, drawing)
    return heat_loads(_heat(), on, SCHEDULE, drawing)


def _heat() -> NDArray[np.float64]:
    with np.load(TRACES / "expert_heat.npz") as archive:
        return np.asarray(archive["qwen3_30b_a3b"], np.float64)


def curves() -> Iterator[list[Point]]:
    """Qwen3-30B-A3B, one thing changed at a time; one EP group, as all of them are alike."""
    alone = machine("qwen3-30b-a3b", "h100x8", 8)
    for sequences in (8, 16, 32, 64, 128):
        yield _points("sequences per micro-step", sequences, alone, sequences)
    for ranks in (2, 4, 8, 16, 32, 64):
        group = machine("qwen3-30b-a3b", f"h100x{ranks}", ranks)
        yield _points("ranks of an EP group", ranks, group, ranks)
    for share in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0):
        cluster = replace(
            alone.cluster,
            peer_bytes_per_second=share * alone.cluster.peer_bytes_per_second,
            host_bytes_per_second=share * alone.cluster.host_bytes_per_second,
        )
        on = replace(alone, cluster=cluster)
        yield _points("bandwidth of the links / an H100's", share, on, alone.ep_size)


def _points(axis: str, value: float, on: Machine, sequences: int) -> list[Point]:
    loads = heat_loads(_heat(), on, SCHEDULE, Drawing(TOKENS, sequences, 0))
    found = _simulate(on, loads, PLOTTED)
    return [Point(axis, value, o.name, o.speedup, o.of_ideal) for o in found]
