"""``foremoe simulate``: one RL step on a cluster you name, under a virtual clock.

The real planner and the real copy schedule run on recorded or drawn routing; the cost model of
docs/simulation.md says what each layer takes. ``--json FILE`` writes one object::

    {
      "model": str, "cluster": str, "ranks": int, "ep_size": int, "routing": str,
      "tokens_per_rank": int or null, "sequences_per_micro_step": int,
      "mini_batches": int, "micro_steps_per_mini_batch": int, "spare_slots": int,
      "target": float or null,
      "policies": [{"name": str, "seconds": {"recompute": float, "update": float},
                    "speedup": float,                over unbalanced, both stages together
                    "of_ideal": float,               speed / that with a force-balanced router
                    "imbalance_mean": float, "imbalance_max": float,
                    "exposed_seconds": float,        copies and gradients, mean EP group
                    "copies": int, "link_bytes": {"host" | "peer" | "network": int},
                    "gradient_bytes": int,           both stages, all groups
                    "extra_bytes": int}, ...]        slots of one rank
    }

``--timeline FILE`` writes a Chrome trace of the first EP group, to open in Perfetto.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from foremoe.commands.ranges import check_least, check_spare_slots
from foremoe.configuration import suggestion
from foremoe.errors import InvalidInputError
from foremoe.foresight.trace import load_trace
from foremoe.outputs import check_writable, write_json
from foremoe.progress import working
from foremoe.simulation.cluster import Machine, machine
from foremoe.simulation.contest import CONTESTANTS, IDEAL, UNBALANCED
from foremoe.simulation.step import (
    Drawing,
    Loads,
    Outcome,
    Schedule,
    heat_loads,
    record_spans,
    simulate_step,
    trace_loads,
    workload_loads,
)
from foremoe.simulation.workloads import WORKLOADS
from foremoe.timeline.chrome_trace import Trace, write_trace

EXAMPLE = "foremoe simulate --model qwen3-30b-a3b --cluster h100x64 --workload dirichlet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", required=True, metavar="NAME", help="a preset or a TOML file")
    parser.add_argument(
        "--cluster", required=True, metavar="NAMExRANKS", help="h100x64, h200x8 or FILE.toml:RANKS"
    )
    routing = parser.add_mutually_exclusive_group()
    routing.add_argument(
        "--workload",
        type=_workload,
        choices=WORKLOADS,
        default="dirichlet",
        metavar="NAME",
        help=f"draw routing: {', '.join(WORKLOADS)}; W0 to W7 will do (default %(default)s)",
    )
    routing.add_argument("--trace", type=Path, metavar="TRACE.npz", help="recorded routing")
    routing.add_argument(
        "--heat", metavar="FILE.npz:NAME", help="draw around recorded tokens [layers, experts]"
    )
    parser.add_argument(
        "--ep-size", type=int, metavar="P", help="ranks of an EP group (default one node's)"
    )
    parser.add_argument(
        "--tokens-per-rank",
        type=int,
        default=16384,
        metavar="T",
        help="of a drawn micro-step (default %(default)s)",
    )
    parser.add_argument(
        "--sequences-per-micro-step",
        type=int,
        metavar="S",
        help="of an EP group (default one a rank)",
    )
    parser.add_argument(
        "--mini-batches", type=int, default=2, metavar="B", help="of the step (default %(default)s)"
    )
    parser.add_argument(
        "--micro-steps-per-mini-batch",
        type=int,
        default=4,
        metavar="M",
        help="of every EP group (default %(default)s)",
    )
    parser.add_argument(
        "--spare-slots",
        type=int,
        default=2,
        metavar="R",
        help="replicas per rank and layer (default %(default)s)",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="imbalance that foremoe aims at (default: the fastest plan of each layer)",
    )
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        metavar="NAME",
        help=f"beside {UNBALANCED} and {IDEAL}: "
        + ", ".join(f"{name!r}" for name in CONTESTANTS if name not in (UNBALANCED, IDEAL))
        + " (default all)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of drawn routing (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="write a Chrome trace here")


def _workload(text: str) -> str:
    """``W2`` for ``W2_hot_rank``."""
    return next((name for name in WORKLOADS if name.partition("_")[0] == text), text)


def run(options: argparse.Namespace) -> int:
    """Simulate, print the table, write what was asked for."""
    check_least(
        options,
        target=1.0,
        tokens_per_rank=1,
        sequences_per_micro_step=1,
        mini_batches=1,
        micro_steps_per_mini_batch=1,
        seed=0,
    )
    check_writable(json=options.json, timeline=options.timeline)
    simulated = machine(options.model, options.cluster, options.ep_size)
    check_spare_slots(options.spare_slots, simulated.model.experts)
    schedule = Schedule(options.mini_batches, options.micro_steps_per_mini_batch)
    loads = _loads(options, simulated, schedule)
    how: dict[str, Any] = {"slots": options.spare_slots, "target": options.target}
    console = Console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("simulating", total=simulated.groups)
        outcomes = simulate_step(
            simulated,
            loads,
            schedule,
            **how,
            names=options.policies,
            workers=min(simulated.groups, os.cpu_count() or 1),
            done=_advance(bar, task),
        )
    if options.timeline:
        with working("recording the timeline"):
            spans = record_spans(simulated, loads, schedule, **how)
        write_trace(options.timeline, Trace({stage.value: spans[stage] for stage in spans}))
    if options.json:
        write_json(options.json, _record(options, simulated, outcomes))
    console.print(_table(options, simulated, outcomes))
    return 0


def _advance(bar: Progress, task: Any) -> Callable[[], None]:
    return lambda: bar.advance(task)


def _loads(options: argparse.Namespace, simulated: Machine, schedule: Schedule) -> Loads:
    sequences = _sequences(options, simulated)
    if options.trace is not None:
        with working("reading the trace"):
            histograms = load_trace(options.trace).histograms()
        return trace_loads(histograms, simulated, schedule, sequences)
    drawing = Drawing(options.tokens_per_rank, sequences, options.seed)
    if options.heat is not None:
        return heat_loads(_heat(options.heat), simulated, schedule, drawing)
    return workload_loads(options.workload, simulated, schedule, drawing)


def _sequences(options: argparse.Namespace, simulated: Machine) -> int:
    chosen: int | None = options.sequences_per_micro_step
    return simulated.ep_size if chosen is None else chosen


def _heat(place: str) -> NDArray[np.float64]:
    """The array that FILE.npz:NAME names."""
    file, colon, name = place.rpartition(":")
    if not colon:
        raise InvalidInputError(f"--heat {place!r}: expected FILE.npz:NAME")
    try:
        with np.load(file) as archive:
            if name not in archive:
                close = suggestion(name, archive.files)
                raise InvalidInputError(f"--heat: {file} has no array {name!r}{close}")
            return np.asarray(archive[name], np.float64)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInputError(f"--heat {place!r}: cannot be read ({error})") from error


def _record(
    options: argparse.Namespace, simulated: Machine, outcomes: list[Outcome]
) -> dict[str, Any]:
    traced = options.trace is not None
    return {
        "model": options.model,
        "cluster": options.cluster,
        "ranks": simulated.ranks,
        "ep_size": simulated.ep_size,
        "routing": str(options.trace or options.heat or options.workload),
        "tokens_per_rank": None if traced else options.tokens_per_rank,
        "sequences_per_micro_step": _sequences(options, simulated),
        "mini_batches": options.mini_batches,
        "micro_steps_per_mini_batch": options.micro_steps_per_mini_batch,
        "spare_slots": options.spare_slots,
        "target": options.target,
        "policies": [asdict(outcome) for outcome in outcomes],
    }


def _table(options: argparse.Namespace, simulated: Machine, outcomes: list[Outcome]) -> Table:
    routing = options.trace.name if options.trace else options.heat or options.workload
    table = Table(
        title=f"{options.model} on {options.cluster}, EP groups of {simulated.ep_size}, {routing}",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("policy")  # wraps, so that no figure is cut
    for heading in ("recompute", "update", "speedup", "of ideal", "imbalance", "exposed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            *(f"{seconds:.3f} s" for seconds in outcome.seconds.values()),
            f"{outcome.speedup:.3f}x",
            f"{100 * outcome.of_ideal:.1f}%",
            f"{outcome.imbalance_mean:.3f}",
            f"{1e3 * outcome.exposed_seconds:.1f} ms",
        )
    return table
