"""``foremoe plan TRACE.npz``: plan a recorded routing trace offline and print what balancing gains.

Sequences are dealt in file order, S to a micro-step (the last one may get fewer); the j-th sequence
of a micro-step belongs to source rank j mod P. With ``--schedule packed`` they are packed by their
routing (``foremoe.planner.packing``), at most S / P (rounded up) to a rank, or up to a budget of
tokens. The whole trace is one mini-batch of one stage. The imbalance before balancing is that of
the schedule with contiguous homes (expert e on rank e * P // E) and no replicas, whatever
``--homes`` says. Each (micro-step, layer) is one sample of the statistics. The planning time is
that of one core, kernels compiled before, without packing and the choice of homes.

``--json FILE`` writes one object, or with ``--policy all`` a list of them::

    {
      "trace": str, "sequences": int, "tokens": int, "layers": int, "experts": int,
      "ranks": int, "nodes": int, "spare_slots": int, "sequences_per_micro_step": int or null,
      "schedule": str, "token_budget": int or null,
      "packing": {"cost": int, "length_only_cost": int, "bound": int} or null,
      "micro_steps": int, "homes": str, "homes_moved_per_layer": float,
      "policy": str, "target": float or null,
      "imbalance_before": {"mean": float, "p99": float, "max": float},
      "imbalance_after": {"mean": float, "p99": float, "max": float},
      "bound_gap": {"mean": float, "max": float},      busiest rank / its lower bound - 1
      "bounds": {"topology": float, "fixed_homes": float},   mean least imbalance: within nodes, and
                                                             with these homes and spare slots
      "replicas_per_layer": {"mean": float, "max": int},   in use, per (micro-step, layer)
      "copies_per_layer": {"mean": float, "max": int},     new on their rank since the micro-step
                                                           before, per (micro-step, layer)
      "planning_seconds": float,                       all micro-steps and layers
      "planning_microseconds_per_layer": float,
      "model": str or null, "cluster": str or null, "stage": str or null,
      "estimated_seconds_before": {...} or null,       of the stage, with contiguous homes and no
                                                       replicas: compute, dispatch, exposed_copies,
                                                       total
      "estimated_seconds_after": {...} or null
    }

``--plans FILE`` writes the plans as ``foremoe.planner.archive`` describes, ``--html FILE``
the page of ``foremoe report``.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from foremoe.commands.plan_tables import comparison, table
from foremoe.commands.ranges import check_least, check_spare_slots
from foremoe.commands.report import require_report
from foremoe.errors import InvalidInputError
from foremoe.foresight.trace import Trace, load_trace
from foremoe.outputs import check_writable, write_json
from foremoe.planner.archive import save_plans
from foremoe.planner.cost import CostModel
from foremoe.planner.figures import estimates, figures, statistics, timed_plans
from foremoe.planner.home_moves import homes_that_pay
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.order import compared_layers, similar_order
from foremoe.planner.packing import (
    UNLIMITED,
    AttentionCost,
    Packing,
    PackingProblem,
    propose_schedule,
    rank_pairs,
)
from foremoe.planner.plan import Plan, home_tokens
from foremoe.planner.policies import POLICIES, warm_up
from foremoe.planner.preset import cluster_preset, cost_model, model_preset, preset_names
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.step_homes import step_homes
from foremoe.planner.validate import validate
from foremoe.progress import working
from foremoe.vocabulary import Stage

DEFAULT_CLUSTER = "h100"
ORDER = {"file": "given", "packed": "similar"}  # by schedule
EXAMPLE = "foremoe plan gpt_oss_20b.npz --ranks 8 --spare-slots 2 --policy all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("trace", type=Path, metavar="TRACE.npz", help="recorded routing trace")
    parser.add_argument("--ranks", type=int, required=True, metavar="P", help="ranks of the group")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="nodes the ranks are on (default 1)"
    )
    parser.add_argument(
        "--spare-slots",
        type=int,
        default=1,
        metavar="R",
        help="replicas per rank and layer (default 1)",
    )
    parser.add_argument(
        "--sequences-per-micro-step",
        type=int,
        default=8,
        metavar="S",
        help="of the whole group (default 8)",
    )
    parser.add_argument(
        "--schedule",
        choices=["file", "packed"],
        default="file",
        help="sequences in file order, or packed by their routing (default file)",
    )
    parser.add_argument(
        "--token-budget",
        type=int,
        metavar="B",
        help="with --schedule packed: fill ranks up to B tokens in place of S sequences",
    )
    parser.add_argument(
        "--attention",
        type=float,
        nargs=2,
        metavar=("ALPHA", "BETA"),
        help="with --schedule packed: a layer's other work on a sequence of t tokens, "
        "ALPHA t + BETA t^2 (token, expert) pairs (default 0 0)",
    )
    parser.add_argument(
        "--order",
        choices=["given", "similar"],
        help="micro-steps as the schedule has them, or alike ones in a row, so that replicas stay "
        "(default given, similar with --schedule packed)",
    )
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
        help="where experts live: as frameworks shard them, or chosen for this load "
        "(default contiguous)",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="imbalance that suffices (1.02, say), to save copies; default: with --model the least "
        "time, else the best balance",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FILE.toml",
        help=f"estimate seconds, and plan for least time: {', '.join(preset_names('models'))}",
    )
    parser.add_argument(
        "--cluster",
        metavar="NAME|FILE.toml",
        help=f"of --model's estimates: {', '.join(preset_names('clusters'))} (default h100)",
    )
    parser.add_argument(
        "--stage", choices=list(Stage), help="of --model's estimates (default update)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--plans", type=Path, metavar="FILE.npz", help="write the plans here")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a report here")


def run(args: argparse.Namespace) -> int:
    """Plan the trace, print the table, write what was asked for. Returns the exit code."""
    if args.policy == "all" and args.plans:
        raise InvalidInputError("--plans: holds the plans of one policy; name it with --policy")
    if args.html:
        require_report()
    check_writable(json=args.json, plans=args.plans, html=args.html)
    with working("reading the trace"):
        trace = load_trace(args.trace)
    with working("laying out the stage"):
        problem, packing = _problem(trace, args)
    common = _common(trace, problem, packing, args)
    policies = list(POLICIES) if args.policy == "all" else [args.policy]
    with working("compiling the planner, once for each machine"):
        warm_up(policies)
    records = []
    for policy in policies:
        with working(f"planning by {policy}"):
            plans, seconds = timed_plans(problem, policy)
        for plan, load in zip(plans, problem.load, strict=True):
            validate(plan, load, problem.topology, problem.spare_slots)
        if args.plans:
            save_plans(args.plans, plans)
        records.append(
            {
                **common,
                "policy": policy,
                **figures(plans, problem.topology.ranks_per_node),
                **estimates(plans, problem),
                "planning_seconds": float(seconds.sum()),
                "planning_microseconds_per_layer": 1e6 * float(seconds.mean()) / trace.layers,
            }
        )
    if args.json:
        write_json(args.json, records if args.policy == "all" else records[0])
    if args.html:
        _write_html(args, problem, plans, seconds, records)
    Console().print(comparison(records) if args.policy == "all" else table(records[0]))
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


def packed_load(histograms: NDArray[np.uint32], packing: Packing) -> NDArray[np.int64]:
    """The load of a packed schedule: ``[S, L, E]`` -> int64 ``[M, L, P, E]``."""
    _, layers, experts = histograms.shape
    load = np.zeros((len(packing.mini_batch), packing.ranks, layers, experts), np.int64)
    np.add.at(load, (packing.micro_step, packing.rank), histograms)
    return np.ascontiguousarray(load.transpose(0, 2, 1, 3))


def _problem(trace: Trace, args: argparse.Namespace) -> tuple[StageProblem, Packing | None]:
    check_least(args, sequences_per_micro_step=1, ranks=1, nodes=1, target=1.0)
    check_spare_slots(args.spare_slots, trace.num_experts)
    if trace.num_experts % args.ranks:
        raise InvalidInputError(
            f"--ranks: {trace.num_experts} experts cannot be shared evenly by {args.ranks} ranks"
        )
    if args.ranks % args.nodes:
        raise InvalidInputError(
            f"--nodes: {args.ranks} ranks cannot be shared evenly by {args.nodes} nodes"
        )
    topology = Topology(args.ranks, args.ranks // args.nodes)
    home = contiguous_homes(trace.layers, trace.num_experts, args.ranks)
    histograms = trace.histograms()
    packing = None
    if args.schedule == "packed":
        packing = _packing(trace, histograms, home, args)
        load = packed_load(histograms, packing)
    elif args.token_budget is not None or args.attention is not None:
        raise InvalidInputError("--token-budget and --attention need --schedule packed")
    else:
        load = stage_load(histograms, args.ranks, args.sequences_per_micro_step)
    if (args.order or ORDER[args.schedule]) == "similar":
        load = load[_similar_order(load)]
    problem = StageProblem(
        load=load,
        home=home,
        mini_batch=np.zeros(len(load), np.int32),
        topology=topology,
        spare_slots=args.spare_slots,
        target=args.target,
        cost=_cost_model(trace, args),
    )
    if args.homes == "step":
        if problem.cost is not None:
            home = homes_that_pay(problem, problem.cost)
        else:
            home = step_homes(load.sum(axis=2), home, topology.ranks, topology.ranks_per_node)
        problem = dataclasses.replace(problem, home=home)
    return problem, packing


def _similar_order(load: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of the micro-steps of ``load [M, L, P, E]``, all of one mini-batch."""
    _, layers, _, experts = load.shape
    compared = load[:, compared_layers(layers, experts)].sum(axis=2)
    return similar_order(compared, np.zeros(len(load), np.int32))


def _packing(
    trace: Trace,
    histograms: NDArray[np.uint32],
    home: NDArray[np.int32],
    args: argparse.Namespace,
) -> Packing:
    """Pack for ``home``, or with ``--homes step`` for what the whole load asks for."""
    if args.homes == "step":
        total = histograms.sum(axis=0, dtype=np.int64)
        home = step_homes(total[None], home, args.ranks, args.ranks // args.nodes)
    tokens = np.diff(trace.offsets)
    check_least(args, token_budget=int(tokens.max()))  # the longest sequence has to fit
    if args.attention and not min(args.attention) >= 0:
        raise InvalidInputError(f"--attention: must be at least 0 each, got {args.attention}")
    budget, most = UNLIMITED, -(-args.sequences_per_micro_step // args.ranks)
    if args.token_budget is not None:
        budget, most = args.token_budget, UNLIMITED
    return propose_schedule(
        PackingProblem(
            tokens=tokens,
            rank_pairs=rank_pairs(histograms, home, args.ranks),
            mini_batch=np.zeros_like(tokens),
            token_budget=budget,
            max_sequences=most,
            attention=AttentionCost(*(args.attention or ())),
        )
    )


def _cost_model(trace: Trace, args: argparse.Namespace) -> CostModel | None:
    if args.model is None:
        for option in ("cluster", "stage"):
            if getattr(args, option) is not None:
                raise InvalidInputError(f"--{option}: estimates need --model as well")
        return None
    model = model_preset(args.model)
    if model.experts != trace.num_experts:
        raise InvalidInputError(
            f"--model: {args.model} has {model.experts} experts a layer, "
            f"{args.trace} has {trace.num_experts}"
        )
    cluster = cluster_preset(args.cluster or DEFAULT_CLUSTER)
    return cost_model(model, cluster, Stage(args.stage or Stage.UPDATE))


def _common(
    trace: Trace, problem: StageProblem, packing: Packing | None, args: argparse.Namespace
) -> dict[str, Any]:
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
        "sequences_per_micro_step": (
            args.sequences_per_micro_step if args.token_budget is None else None
        ),
        "schedule": args.schedule,
        "order": args.order or ORDER[args.schedule],
        "token_budget": args.token_budget,
        "packing": packing
        and {
            "cost": packing.cost,
            "length_only_cost": packing.length_only_cost,
            "bound": packing.bound,
        },
        "micro_steps": problem.micro_steps,
        "homes": args.homes,
        "homes_moved_per_layer": float(np.mean(np.sum(problem.home != contiguous, axis=1))),
        "target": args.target,
        "imbalance_before": statistics(imbalance(before)),
        "model": args.model,
        "cluster": (args.cluster or DEFAULT_CLUSTER) if args.model else None,
        "stage": str(args.stage or Stage.UPDATE) if args.model else None,
    }


def _write_html(
    args: argparse.Namespace,
    problem: StageProblem,
    plans: list[Plan],
    seconds: NDArray[np.float64],
    records: list[dict[str, Any]],
) -> None:
    """The report of one policy's plans, or with all policies of how they compare."""
    from foremoe.report.page import write_report
    from foremoe.report.plans_chapter import Hardware, plans_chapter
    from foremoe.report.plans_run import PlansRun
    from foremoe.report.policies_chapter import policies_chapter

    def chapters() -> list[Any]:
        if args.policy == "all":
            return [policies_chapter(args.trace, records)]
        run = PlansRun(str(args.trace), plans, problem.topology, args.policy, args.target, seconds)
        if args.model is None:
            return [plans_chapter(run, None)]
        stage = Stage(args.stage or Stage.UPDATE)
        return [plans_chapter(run, Hardware(args.model, args.cluster or DEFAULT_CLUSTER, stage))]

    write_report(args.html, None, chapters)
