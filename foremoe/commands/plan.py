"""``foremoe plan TRACE.npz``: plan a recorded routing trace offline and print what balancing gains.

Sequences are dealt in file order, S to a micro-step (the last one may get fewer); the j-th sequence
of a micro-step belongs to source rank j mod P. The whole trace is one mini-batch of one stage. The
imbalance before balancing is that of contiguous homes (expert e on rank e * P // E) without
replicas, whatever ``--homes`` says. Each (micro-step, layer) is one sample of the statistics. The
planning time is that of one core, kernels compiled before, without the choice of homes.

``--json FILE`` writes one object, or with ``--policy all`` a list of them::

    {
      "trace": str, "sequences": int, "tokens": int, "layers": int, "experts": int,
      "ranks": int, "nodes": int, "spare_slots": int, "sequences_per_micro_step": int,
      "micro_steps": int, "homes": str, "homes_moved_per_layer": float,
      "policy": str, "target": float or null,
      "imbalance_before": {"mean": float, "p99": float, "max": float},
      "imbalance_after": {"mean": float, "p99": float, "max": float},
      "bound_gap": {"mean": float, "max": float},      busiest rank / its lower bound - 1
      "replicas_per_layer": {"mean": float, "max": int},   in use, per (micro-step, layer)
      "copies_per_layer": {"mean": float, "max": int},     new on their rank since the micro-step
                                                           before, per (micro-step, layer)
      "planning_seconds": float,                       all micro-steps and layers
      "planning_microseconds_per_layer": float
    }

``--plans FILE`` writes the plans as ``foremoe.planner.archive`` describes.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from foremoe.errors import InvalidInputError
from foremoe.foresight.trace import Trace, load_trace
from foremoe.planner.archive import save_plans
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan, home_tokens
from foremoe.planner.policies import POLICIES, warm_up
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.step_homes import step_homes
from foremoe.planner.validate import validate

EXAMPLE = "foremoe plan gpt_oss_20b.npz --ranks 8 --spare-slots 2 --policy all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("trace", type=Path, metavar="TRACE.npz", help="recorded routing trace")
    parser.add_argument("--ranks", type=int, required=True, metavar="P", help="ranks of the group")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="nodes the ranks are on (default 1)"
    )
    parser.add_argument(
        "--spare-slots", type=int, default=1, metavar="R", help="replicas per rank and layer"
    )
    parser.add_argument("--sequences-per-micro-step", type=int, default=8, metavar="S")
    parser.add_argument(
        "--policy",
        choices=[*POLICIES, "all"],
        default="foremoe",
        help="foremoe plans each micro-step alone, resident over time; all compares them "
        "(default foremoe)",
    )
    parser.add_argument(
        "--homes",
        choices=["contiguous", "step"],
        default="contiguous",
        help="where experts live: as frameworks shard them, or chosen for this load",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="imbalance that suffices (1.02, say), to save copies; default: the best balance",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--plans", type=Path, metavar="FILE.npz", help="write the plans here")


def run(args: argparse.Namespace) -> int:
    """Plan the trace, print the table, write what was asked for. Returns the exit code."""
    if args.policy == "all" and args.plans:
        raise InvalidInputError("--plans: holds the plans of one policy; name it with --policy")
    trace = load_trace(args.trace)
    problem = _problem(trace, args)
    common = _common(trace, problem, args)
    policies = list(POLICIES) if args.policy == "all" else [args.policy]
    warm_up(policies)
    records = []
    for policy in policies:
        plans, seconds = _timed_plans(problem, policy)
        for plan, load in zip(plans, problem.load, strict=True):
            validate(plan, load, problem.topology, problem.spare_slots)
        if args.plans:
            save_plans(args.plans, plans)
        records.append(
            {
                **common,
                "policy": policy,
                **_figures(plans),
                "planning_seconds": seconds,
                "planning_microseconds_per_layer": 1e6 * seconds / (len(plans) * trace.layers),
            }
        )
    if args.json:
        _write_json(args.json, records if args.policy == "all" else records[0])
    Console().print(_comparison(records) if args.policy == "all" else _table(records[0]))
    return 0


def stage_load(
    histograms: NDArray[np.uint32], ranks: int, sequences_per_micro_step: int
) -> NDArray[np.int64]:
    """Deal sequences to micro-steps and source ranks: ``[S, L, E]`` -> int64 ``[M, L, P, E]``."""
    sequences, layers, experts = histograms.shape
    micro_steps = -(-sequences // sequences_per_micro_step)
    load = np.zeros((micro_steps, layers, ranks, experts), np.int64)
    for sequence, histogram in enumerate(histograms):
        micro_step, place = divmod(sequence, sequences_per_micro_step)
        load[micro_step, :, place % ranks] += histogram
    return load


def _problem(trace: Trace, args: argparse.Namespace) -> StageProblem:
    if args.sequences_per_micro_step < 1:
        raise InvalidInputError(
            f"--sequences-per-micro-step: must be at least 1, got {args.sequences_per_micro_step}"
        )
    if args.ranks < 1 or args.nodes < 1 or args.ranks % args.nodes:
        raise InvalidInputError(
            f"--nodes: {args.ranks} ranks cannot be shared evenly by {args.nodes} nodes"
        )
    topology = Topology(args.ranks, args.ranks // args.nodes)
    home = contiguous_homes(trace.layers, trace.num_experts, args.ranks)
    load = stage_load(trace.histograms(), args.ranks, args.sequences_per_micro_step)
    if args.homes == "step":
        home = step_homes(load.sum(axis=2), home, topology.ranks, topology.ranks_per_node)
    return StageProblem(
        load=load,
        home=home,
        mini_batch=np.zeros(len(load), np.int32),
        topology=topology,
        spare_slots=args.spare_slots,
        target=args.target,
    )


def _common(trace: Trace, problem: StageProblem, args: argparse.Namespace) -> dict[str, Any]:
    """What the record says whatever the policy."""
    contiguous = contiguous_homes(trace.layers, trace.num_experts, args.ranks)
    before = np.stack([home_tokens(load, contiguous) for load in problem.load])
    return {
        "trace": str(args.trace),
        "sequences": trace.sequences,
        "tokens": len(trace.experts),
        "layers": trace.layers,
        "experts": trace.num_experts,
        "ranks": args.ranks,
        "nodes": args.nodes,
        "spare_slots": args.spare_slots,
        "sequences_per_micro_step": args.sequences_per_micro_step,
        "micro_steps": problem.micro_steps,
        "homes": args.homes,
        "homes_moved_per_layer": float(np.mean(np.sum(problem.home != contiguous, axis=1))),
        "target": args.target,
        "imbalance_before": _statistics(imbalance(before)),
    }


def _timed_plans(problem: StageProblem, policy: str) -> tuple[list[Plan], float]:
    began = time.perf_counter()
    plans = list(POLICIES[policy](problem))
    return plans, time.perf_counter() - began


def _figures(plans: list[Plan]) -> dict[str, Any]:
    tokens = np.stack([plan.rank_tokens() for plan in plans])  # [M, L, P]
    bound = np.stack([plan.bound for plan in plans])
    gap = tokens.max(axis=-1) / np.maximum(bound, 1) - (bound > 0)
    placed = np.stack([plan.replica_expert for plan in plans])
    replicas = (placed >= 0).sum(axis=(2, 3))
    copies = copied(placed)
    return {
        "imbalance_after": _statistics(imbalance(tokens)),
        "bound_gap": {"mean": float(gap.mean()), "max": float(gap.max())},
        "replicas_per_layer": {"mean": float(replicas.mean()), "max": int(replicas.max())},
        "copies_per_layer": {"mean": float(copies.mean()), "max": int(copies.max())},
    }


def copied(placed: NDArray[np.int32]) -> NDArray[np.int64]:
    """Replicas not on their rank in the micro-step before: ``[M, L, P, R]`` -> int64 ``[M, L]``."""
    before = np.concatenate([np.full_like(placed[:1], -1), placed[:-1]])
    resident = (placed[..., :, None] == before[..., None, :]).any(axis=-1)
    copies: NDArray[np.int64] = ((placed >= 0) & ~resident).sum(axis=(2, 3))
    return copies


def _statistics(samples: NDArray[np.float64]) -> dict[str, float]:
    return {
        "mean": float(samples.mean()),
        "p99": float(np.quantile(samples, 0.99)),
        "max": float(samples.max()),
    }


def _write_json(path: Path, content: Any) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error


def _title(record: dict[str, Any]) -> str:
    target = "" if record["target"] is None else f", target {record['target']}"
    return (
        f"{record['micro_steps']} micro-steps of {record['sequences_per_micro_step']} sequences, "
        f"{record['layers']} layers, {record['experts']} experts on {record['ranks']} ranks "
        f"({record['nodes']} nodes), {record['homes']} homes, "
        f"{record['spare_slots']} spare slots{target}"
    )


def _table(record: dict[str, Any]) -> Table:
    """One policy, one line for each figure."""
    table = Table(title=_title(record))
    table.add_column(f"policy {record['policy']}, by micro-step and layer")
    for name in ("mean", "p99", "max"):
        table.add_column(name, justify="right")
    for label, key in (("imbalance before", "before"), ("imbalance after", "after")):
        figures = record[f"imbalance_{key}"]
        table.add_row(label, *(f"{figures[name]:.4f}" for name in ("mean", "p99", "max")))
    gap = record["bound_gap"]
    table.add_row("above the lower bound", f"{gap['mean']:.3%}", "", f"{gap['max']:.3%}")
    for label, key in (("replicas", "replicas_per_layer"), ("copies", "copies_per_layer")):
        table.add_row(label, f"{record[key]['mean']:.2f}", "", str(record[key]["max"]))
    table.add_row("planning time", f"{record['planning_microseconds_per_layer']:.1f} µs", "", "")
    return table


def _comparison(records: list[dict[str, Any]]) -> Table:
    """All policies, one line for each."""
    table = Table(title=_title(records[0]))
    for name in ("policy", "imbalance", "p99", "max", "above bound", "copies", "time"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    before = records[0]["imbalance_before"]
    table.add_row("before", *(f"{before[name]:.4f}" for name in ("mean", "p99", "max")), "", "", "")
    for record in records:
        after = record["imbalance_after"]
        table.add_row(
            record["policy"],
            *(f"{after[name]:.4f}" for name in ("mean", "p99", "max")),
            f"{record['bound_gap']['mean']:.3%}",
            f"{record['copies_per_layer']['mean']:.2f}",
            f"{record['planning_microseconds_per_layer']:.1f} µs",
        )
    return table
