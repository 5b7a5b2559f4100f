"""How long planning takes, in processor time of its one thread, as the machine may be shared."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import numpy as np

from benchmarks.planner_figures import PLANNED, pose
from benchmarks.planner_loads import Workload, drawn, drawn_with_256_experts, pooled, recorded
from foremoe.planner.bound import lower_bound
from foremoe.planner.certificate import certificate
from foremoe.planner.goal import goal_tokens
from foremoe.planner.micro_step import choose
from foremoe.planner.plan import Plan
from foremoe.planner.preset import cluster_preset, cost_model, model_preset
from foremoe.planner.problem import StageProblem
from foremoe.planner.split import split_by_source
from foremoe.vocabulary import Stage

TARGET = 1.02
ALONE, OVER_TIME = "alone", "over time"
COSTS = {
    "by time": cost_model(model_preset("qwen3-30b-a3b"), cluster_preset("h100"), Stage.UPDATE),
    "by time, large experts": cost_model(
        model_preset("deepseek-v3"), cluster_preset("h100"), Stage.UPDATE
    ),
}


@dataclass(frozen=True)
class Timing:
    """Microseconds for one (micro-step, layer) planned alone, everything included."""

    experts: int
    ranks: int
    nodes: int
    aim: str  # the best balance, a target, or the least estimated time
    microseconds: float


@dataclass(frozen=True)
class Part:
    """Where they go."""

    experts: int
    ranks: int
    planned: str
    part: str
    microseconds: float


@dataclass(frozen=True)
class StageTiming:
    """A whole stage planned over time, to a target or by the least estimated time."""

    aim: str
    micro_steps: int
    layers: int
    experts: int
    ranks: int
    spare_slots: int
    seconds: float
    first_plan_milliseconds: float


@dataclass(frozen=True)
class Point:
    """One point of a scaling curve: microseconds for one (micro-step, layer)."""

    axis: str
    value: int
    planned: str
    microseconds: float


def shapes() -> list[Workload]:
    """The three sizes that have an aim."""
    return [
        Workload("", recorded(8).load[:16]),
        drawn("qwen3_30b_a3b", 32, micro_steps=2, layers=16),
        drawn_with_256_experts(64, micro_steps=1, layers=16),
    ]


def timings() -> Iterator[Timing]:
    """One spare slot, contiguous homes."""
    cases: list[tuple[str, StageProblem]] = []
    for workload in shapes():
        for nodes in dict.fromkeys((1, workload.load.shape[2] // 8)):
            cases.append(("best", pose(workload, "contiguous", 1, None, nodes)))
            cases.append((f"{TARGET:g}", pose(workload, "contiguous", 1, TARGET, nodes)))
            for aim, cost in COSTS.items():
                problem = pose(workload, "contiguous", 1, None, nodes)
                cases.append((aim, replace(problem, cost=cost)))
    fastest = _fastest([partial(_plan_alone, problem) for _, problem in cases])
    for (aim, problem), seconds in zip(cases, fastest, strict=True):
        ranks, experts = problem.load.shape[2:]
        yield Timing(experts, ranks, problem.topology.nodes, aim, _microseconds(problem, seconds))


def parts() -> Iterator[Part]:
    """At target 1.02 on one node: alone with one spare slot, over time with two."""
    for workload in shapes():
        yield from _parts_alone(pose(workload, "contiguous", 1, TARGET))
    yield from _parts_over_time(stage_problem(layers=8))


def _parts_alone(problem: StageProblem) -> Iterator[Part]:
    topology, home = problem.topology, problem.home
    ranks, slots = topology.ranks, problem.spare_slots
    origins = [topology.by_node(load) for load in problem.load]
    total = [origin.sum(axis=1) for origin in origins]
    bound = [lower_bound(tokens, home, ranks, slots) for tokens in total]
    goal = [goal_tokens(tokens, ranks, TARGET) for tokens in total]
    asked = list(zip(origins, bound, goal, strict=True))
    placed = [choose(origin, home, least, aim, topology, slots) for origin, least, aim in asked]
    chosen = list(zip(problem.load, placed, strict=True))
    plans = list(PLANNED["foremoe"](problem))
    work: dict[str, Callable[[], object]] = {
        "sum over sources": lambda: [topology.by_node(load) for load in problem.load],
        "lower bound": lambda: [lower_bound(tokens, home, ranks, slots) for tokens in total],
        "replicas and quotas": lambda: [
            choose(origin, home, least, aim, topology, slots) for origin, least, aim in asked
        ],
        "split by source": lambda: [
            split_by_source(load, home, replicas, quota, ranks)
            for load, (replicas, quota) in chosen
        ],
        "certificate": lambda: [certificate(plan, ranks) for plan in plans],
    }
    for name, seconds in zip(work, _fastest(list(work.values())), strict=True):
        yield Part(home.shape[1], ranks, ALONE, name, _microseconds(problem, seconds))


def _parts_over_time(problem: StageProblem) -> Iterator[Part]:
    home, ranks, slots = problem.home, problem.topology.ranks, problem.spare_slots
    plans = list(PLANNED["resident"](problem))
    quotas = [plan.replica_tokens.sum(axis=1) for plan in plans]
    whole, bound, split = _fastest(
        [
            lambda: list(PLANNED["resident"](problem)),
            lambda: [lower_bound(load.sum(axis=1), home, ranks, slots) for load in problem.load],
            lambda: [
                split_by_source(plan.load, home, plan.replica_expert, quota, ranks)
                for plan, quota in zip(plans, quotas, strict=True)
            ],
        ],
        rounds=3,
    )
    for name, seconds in (
        ("sum over sources, lower bound", bound),
        ("slots and flows", whole - bound - split),
        ("split by source", split),
    ):
        yield Part(home.shape[1], ranks, OVER_TIME, name, _microseconds(problem, seconds))


def stage_timings() -> Iterator[StageTiming]:
    """64 micro-steps of 48 layers over time: in all, and until the first plan is there."""
    problem = stage_problem(layers=48)
    for aim, asked in (
        (f"{TARGET:g}", problem),
        ("by time", replace(problem, target=None, cost=COSTS["by time"])),
    ):
        first, whole = _fastest(
            [partial(_first_over_time, asked), partial(_plan_over_time, asked)], 3
        )
        micro_steps, layers, ranks, experts = asked.load.shape
        yield StageTiming(aim, micro_steps, layers, experts, ranks, 2, whole, 1e3 * first)


def _first_over_time(problem: StageProblem) -> Plan:
    return next(PLANNED["resident"](problem))


def stage_problem(layers: int) -> StageProblem:
    """64 micro-steps, 128 experts, 32 ranks, 2 spare slots; eight layers over and over."""
    eight = drawn("qwen3_30b_a3b", 32, micro_steps=64, layers=8).load
    load = np.concatenate([eight] * (layers // 8), axis=1)
    return pose(Workload("", load), "contiguous", 2, TARGET)


def scaling() -> Iterator[Point]:
    """In ranks, experts, spare slots and micro-steps, around E = 128, P = 32, R = 2 and 16."""
    problems: dict[tuple[str, int], StageProblem] = {}
    for ranks in (4, 8, 16, 32, 64, 128):
        workload = drawn("qwen3_30b_a3b", ranks, micro_steps=16, layers=2)
        problems["ranks", ranks] = pose(workload, "contiguous", 2, TARGET)
    wide = drawn("qwen3_next_80b", 32, micro_steps=16, layers=2)
    for experts in (32, 64, 128, 256, 512):
        problems["experts", experts] = pose(pooled(wide, experts), "contiguous", 2, TARGET)
    long = drawn("qwen3_30b_a3b", 32, micro_steps=128, layers=2).load
    for slots in (1, 2, 4, 8):
        workload = Workload("", long[:16])
        problems["spare slots", slots] = pose(workload, "contiguous", slots, TARGET)
    for micro_steps in (1, 4, 16, 64, 128):
        workload = Workload("", long[:micro_steps])
        problems["micro-steps", micro_steps] = pose(workload, "contiguous", 2, TARGET)
    runs: list[Callable[[], object]] = []
    for problem in problems.values():
        runs += [partial(_plan_alone, problem), partial(_plan_over_time, problem)]
    fastest = _fastest(runs, rounds=15)
    taken = zip(fastest[::2], fastest[1::2], strict=True)
    for ((axis, value), problem), (alone, over_time) in zip(problems.items(), taken, strict=True):
        yield Point(axis, value, ALONE, _microseconds(problem, alone))
        yield Point(axis, value, OVER_TIME, _microseconds(problem, over_time))


def _plan_alone(problem: StageProblem) -> None:
    for plan in PLANNED["foremoe"](problem):
        certificate(plan, problem.topology.ranks_per_node)


def _plan_over_time(problem: StageProblem) -> list[Plan]:
    return list(PLANNED["resident"](problem))


def _microseconds(problem: StageProblem, seconds: float) -> float:
    """For one (micro-step, layer)."""
    micro_steps, layers = problem.load.shape[:2]
    return 1e6 * seconds / float(micro_steps * layers)


def _fastest(runs: list[Callable[[], object]], rounds: int = 50) -> list[float]:
    """Processor seconds of each run, the fastest of ``rounds`` taken in turns."""
    seconds = [inf] * len(runs)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            began = time.thread_time()
            run()
            seconds[index] = min(seconds[index], time.thread_time() - began)
    return seconds
