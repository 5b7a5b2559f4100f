"""Balance, copies and time of the planner beside its peers', in one run.

    python -m benchmarks.planner [--json FILE] [--markdown FILE]

The peers are our own implementations from their descriptions (``foremoe.planner.baselines``), given
the same loads, homes and spare slots. Their time says nothing about them: they are plain Python.
Loads: recorded routing of gpt-oss-20b with 8 sequences a micro-step, and micro-steps drawn around
the recorded heat of Qwen3-30B-A3B and Qwen3-Next-80B. A copy is a replica, or a home, that was not
on its rank for that layer in the micro-step before. Times are the fastest of several runs on one
core, in turns over the cases, as the machine is shared.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.planner_figures import TARGETS, Figure, StageTiming, Timing, markdown
from benchmarks.planner_loads import Workload, drawn, drawn_with_256_experts, recorded
from benchmarks.record import Record
from foremoe.planner.cost import CostModel
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan
from foremoe.planner.policies import POLICIES, warm_up
from foremoe.planner.preset import cluster_preset, cost_model, model_preset
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.step_homes import step_homes
from foremoe.planner.validate import validate
from foremoe.vocabulary import Stage


def main() -> None:
    """Run everything, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    record = Record("planner", {"targets": TARGETS})
    warm_up()
    console = Console()
    with console.status("balance"):
        balance = list(_balance())
    with console.status("copies"):
        over_time = list(_over_time())
    with console.status("frontier"):
        frontier = list(_frontier())
    with console.status("nodes"):
        nodes = list(_nodes())
    with console.status("time"):
        timings, stage = list(_timings()), _stage_timing()
    text = markdown(balance, over_time, frontier, nodes, timings, stage)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.json:
        figures = {
            "balance": [asdict(figure) for figure in balance],
            "over_time": [asdict(figure) for figure in over_time],
            "frontier": [asdict(figure) for figure in frontier],
            "nodes": [asdict(figure) for figure in nodes],
            "microseconds": [asdict(timing) for timing in timings],
            "stage": asdict(stage),
        }
        record.write(arguments.json, figures)


def _balance() -> Iterator[Figure]:
    """The best balance each policy finds."""
    for ranks in (8, 16):
        workload = recorded(ranks)
        for slots in (1, 2):
            for policy in POLICIES:
                if policy != "resident":
                    yield _figure(workload, "contiguous", policy, slots, None)
            yield _figure(workload, "step", "foremoe", slots, None)
    for model, ranks in (("qwen3_30b_a3b", 8), ("qwen3_30b_a3b", 32), ("qwen3_30b_a3b", 64)):
        workload = drawn(model, ranks, micro_steps=4, layers=12)
        for policy in ("none", "foremoe", "eplb-history", "eplb-oracle", "greedy", "alias"):
            yield _figure(workload, "contiguous", policy, 1, None)
        yield _figure(workload, "step", "foremoe", 1, None)
    workload = drawn("qwen3_next_80b", 64, micro_steps=4, layers=4)
    for policy in ("none", "foremoe"):
        yield _figure(workload, "contiguous", policy, 1, None)
    yield _figure(workload, "step", "foremoe", 1, None)


def _over_time() -> Iterator[Figure]:
    """Copies at target 1.02: every micro-step alone, and over time."""
    for ranks in (8, 16):
        workload = recorded(ranks)
        for homes in ("contiguous", "step"):
            yield _figure(workload, homes, "foremoe", 1, 1.02)
            for slots in (1, 2, 4):
                yield _figure(workload, homes, "resident", slots, 1.02)


def _frontier() -> Iterator[Figure]:
    """Copies against the target."""
    workload = recorded(8)
    for slots in (1, 2, 4):
        for target in TARGETS:
            for policy in ("foremoe", "resident"):
                yield _figure(workload, "contiguous", policy, slots, target)


def _nodes() -> Iterator[Figure]:
    """Eight nodes of eight ranks: what crosses them, beside each peer at the peer's own balance."""
    workload = drawn("qwen3_30b_a3b", 64, micro_steps=8, layers=6)
    for homes in ("contiguous", "step"):
        yield _figure(workload, homes, "none", 1, None, nodes=8)
        for slots in (1, 2):
            for policy in ("eplb-history", "eplb-oracle", "greedy", "greedy-in-node", "alias"):
                peer = _figure(workload, homes, policy, slots, None, nodes=8)
                yield peer
                yield _figure(workload, homes, "foremoe", slots, peer.imbalance_mean, nodes=8)
            for policy in ("foremoe", "resident"):
                yield _figure(workload, homes, policy, slots, 1.02, nodes=8)


def _figure(
    workload: Workload,
    homes: str,
    policy: str,
    spare_slots: int,
    target: float | None,
    nodes: int = 1,
) -> Figure:
    problem = _problem(workload, homes, spare_slots, target, nodes)
    plans = list(POLICIES[policy](problem))
    for plan, load in zip(plans, problem.load, strict=True):
        validate(plan, load, problem.topology, spare_slots)
    tokens = np.stack([plan.rank_tokens() for plan in plans])
    reached = imbalance(tokens)
    bound = np.stack([plan.bound for plan in plans])
    layers = problem.load.shape[1]
    copies, across = _copies(plans, problem.topology)
    return Figure(
        workload=workload.name,
        homes=homes,
        policy=policy,
        spare_slots=spare_slots,
        target=target,
        nodes=nodes,
        imbalance_mean=float(reached.mean()),
        imbalance_p99=float(np.quantile(reached, 0.99)),
        imbalance_max=float(reached.max()),
        gap_to_bound_mean=float(np.mean(tokens.max(axis=2) / np.maximum(bound, 1)) - 1),
        replicas=sum(plan.replicas() for plan in plans) / (len(plans) * layers),
        copies=copies / (len(plans) * layers),
        copies_across_nodes=across / (len(plans) * layers),
        tokens_across_nodes=_tokens_across(plans, problem.topology),
    )


def _problem(
    workload: Workload, homes: str, spare_slots: int, target: float | None, nodes: int = 1
) -> StageProblem:
    micro_steps, layers, ranks, experts = workload.load.shape
    topology = Topology(ranks, ranks // nodes)
    home = contiguous_homes(layers, experts, ranks)
    if homes == "step":
        home = step_homes(workload.load.sum(axis=2), home, ranks, topology.ranks_per_node)
    return StageProblem(
        workload.load, home, np.zeros(micro_steps, np.int32), topology, spare_slots, target
    )


def _copies(plans: list[Plan], topology: Topology) -> tuple[int, int]:
    """Replicas and homes that were not on their rank before, and those from another node."""
    copies = across = 0
    before = np.zeros((*plans[0].home.shape, topology.ranks), np.bool_)  # [L, E, P]
    node = np.arange(topology.ranks) // topology.ranks_per_node
    for index, plan in enumerate(plans):
        hosted = np.zeros_like(before)
        layer, rank, slot = np.nonzero(plan.replica_expert >= 0)
        hosted[layer, plan.replica_expert[layer, rank, slot], rank] = True
        np.put_along_axis(hosted, plan.home[:, :, None], True, axis=2)
        if index == 0:  # homes are where they are when the stage begins
            np.put_along_axis(before, plan.home[:, :, None], True, axis=2)
        new_layer, new_expert, new_rank = np.nonzero(hosted & ~before)
        owner = plan.home[new_layer, new_expert]
        copies += len(new_layer)
        across += int(np.count_nonzero(node[owner] != node[new_rank]))
        before = hosted
    return copies, across


def _tokens_across(plans: list[Plan], topology: Topology) -> float:
    """Share of all pairs that are computed on another node than they originate on."""
    node = np.arange(topology.ranks) // topology.ranks_per_node
    far = node[:, None] != node[None, :]  # [source, rank]
    crossing = 0
    for plan in plans:
        left = plan.load.copy()
        for layer, rank, slot in np.argwhere(plan.replica_expert >= 0):
            served = plan.replica_tokens[layer, :, rank, slot]
            crossing += int(served[far[:, rank]].sum())
            left[layer, :, plan.replica_expert[layer, rank, slot]] -= served
        home_far = node[None, :, None] != node[plan.home][:, None, :]  # [L, source, E]
        crossing += int(left[home_far].sum())
    return crossing / max(sum(int(plan.load.sum()) for plan in plans), 1)


def _timings() -> Iterator[Timing]:
    """One core, single micro-steps: bound, replicas, quotas and split."""
    workloads = [
        ("E = 32, P = 8", Workload("", recorded(8).load[:16])),
        ("E = 128, P = 32", drawn("qwen3_30b_a3b", 32, micro_steps=2, layers=16)),
        ("E = 256, P = 64", drawn_with_256_experts(64, micro_steps=1, layers=16)),
    ]
    problems: list[tuple[str, str, Workload, float | None, int, CostModel | None]] = [
        (name, "best" if target is None else f"{target:g}", workload, target, 1, None)
        for name, workload in workloads
        for target in (None, 1.02)
    ]
    model, cluster = model_preset("qwen3-30b-a3b"), cluster_preset("h100")
    for name, workload in workloads:
        cost = cost_model(model, cluster, Stage.UPDATE)
        problems.append((name, "by time", workload, None, 1, cost))
    for target in (None, 1.02):
        aim = "best, 8 nodes" if target is None else f"{target:g}, 8 nodes"
        problems.append((workloads[-1][0], aim, workloads[-1][1], target, 8, None))
    cases = [
        (name, aim, replace(_problem(workload, "contiguous", 1, target, nodes), cost=cost))
        for name, aim, workload, target, nodes, cost in problems
    ]
    fastest = _fastest([partial(_plan, problem) for *_, problem in cases])
    for (name, aim, problem), seconds in zip(cases, fastest, strict=True):
        samples = problem.load.shape[0] * problem.load.shape[1]
        yield Timing(name, aim, 1e6 * seconds / samples)


def _plan(problem: StageProblem) -> list[Plan]:
    return list(POLICIES["foremoe"](problem))


def _stage_timing() -> StageTiming:
    """64 micro-steps of 48 layers over time: in all, and until the first plan is there."""
    few = drawn("qwen3_30b_a3b", 32, micro_steps=64, layers=8).load
    problem = _problem(Workload("", np.concatenate([few] * 6, axis=1)), "contiguous", 2, 1.02)
    micro_steps, layers, ranks, experts = problem.load.shape
    first, whole = _fastest(
        [
            lambda: next(POLICIES["resident"](problem)),
            lambda: list(POLICIES["resident"](problem)),
        ],
        rounds=3,
    )
    return StageTiming(micro_steps, layers, experts, ranks, 2, whole, 1e3 * first)


def _fastest(runs: list[Callable[[], object]], rounds: int = 9) -> NDArray[np.float64]:
    """Seconds of each run, the fastest of ``rounds`` taken in turns."""
    seconds = np.full(len(runs), np.inf)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            began = time.perf_counter()
            run()
            seconds[index] = min(seconds[index], time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
