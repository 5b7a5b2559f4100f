"""``foremoe advise``: EP, ETP, spare slots and host cache for a model and a cluster, with reasons.

``--json FILE`` writes one object::

    {"ep": int, "etp": int, "spare_slots": int, "layers_with_slots": int, "slot_bytes": float,
     "cache_bytes": float, "hiding_tokens": int, "reasons": [str],
     "divisions": [{"ep": int, "etp": int, "memory_bytes": float, "fits": bool,
                    "compute_seconds": float, "dispatch_seconds": float, "sync_seconds": float}]}
"""

import argparse
import math
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from foremoe.advice import Advice, Division, Limits, advise, divisions
from foremoe.errors import InvalidInputError
from foremoe.outputs import check_writable, write_json
from foremoe.simulation.cluster import machine

EXAMPLE = "foremoe advise --model qwen3-30b-a3b --cluster h100x64"
_GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", required=True, metavar="NAME", help="a preset or a TOML file")
    parser.add_argument(
        "--cluster", required=True, metavar="NAMExRANKS", help="h100x64, h200x8 or FILE.toml:RANKS"
    )
    parser.add_argument(
        "--gpu-gib", type=float, default=80.0, metavar="G", help="memory of a GPU (default 80)"
    )
    parser.add_argument(
        "--host-gib",
        type=float,
        default=512.0,
        metavar="G",
        help="memory of a node that the host cache may take (default 512)",
    )
    parser.add_argument(
        "--reserve",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="of a GPU's memory for activations and what is not counted (default 0.4)",
    )
    parser.add_argument(
        "--tokens-per-rank",
        type=int,
        default=16384,
        metavar="T",
        help="of a micro-step (default %(default)s)",
    )
    parser.add_argument(
        "--micro-steps-per-mini-batch",
        type=int,
        default=8,
        metavar="M",
        help="over which a replica's gradients are gathered (default %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")


def run(options: argparse.Namespace) -> int:
    """Weigh all divisions, print them and what is advised."""
    limits = limits_of(options)
    check_writable(json=options.json)
    target = machine(options.model, options.cluster, None)
    ways, advice = divisions(target, limits), advise(target, limits)
    if options.json:
        record = {**_figures(advice), "divisions": [_record(way) for way in ways]}
        write_json(options.json, record)
    console = Console()
    console.print(_table([way for way in ways if way.etp == advice.division.etp], advice))
    console.print(
        f"[bold]EP {advice.division.ep}, ETP {advice.division.etp}, spare_slots="
        f"{advice.spare_slots}, host cache {advice.cache_bytes / _GIB:.0f} GiB a node[/bold]"
    )
    for reason in advice.reasons:
        console.print(f"- {reason}", highlight=False, soft_wrap=True)
    return 0


def limits_of(options: argparse.Namespace) -> Limits:
    """Raises InvalidInputError for options out of range."""
    for name in ("gpu_gib", "host_gib", "tokens_per_rank", "micro_steps_per_mini_batch"):
        value = getattr(options, name)
        if not 0 < value < math.inf:
            raise InvalidInputError(f"--{name.replace('_', '-')} {value}: must be a number above 0")
    if not 0 <= options.reserve < 1:
        raise InvalidInputError(f"--reserve {options.reserve}: must be from 0 to below 1")
    return Limits(
        gpu_bytes=options.gpu_gib * _GIB,
        host_bytes=options.host_gib * _GIB,
        reserve=options.reserve,
        tokens=options.tokens_per_rank,
        micro_steps_per_mini_batch=options.micro_steps_per_mini_batch,
    )


def _figures(advice: Advice) -> dict[str, object]:
    return {
        "ep": advice.division.ep,
        "etp": advice.division.etp,
        "spare_slots": advice.spare_slots,
        "layers_with_slots": advice.resident_layers,
        "slot_bytes": advice.slot_bytes,
        "cache_bytes": advice.cache_bytes,
        "hiding_tokens": advice.hiding_tokens,
        "reasons": list(advice.reasons),
    }


def _record(way: Division) -> dict[str, object]:
    return {
        "ep": way.ep,
        "etp": way.etp,
        "memory_bytes": way.memory_bytes,
        "fits": way.fits,
        "compute_seconds": way.compute_seconds,
        "dispatch_seconds": way.dispatch_seconds,
        "sync_seconds": way.sync_seconds,
    }


def _table(ways: list[Division], advice: Advice) -> Table:
    table = Table(box=SIMPLE, title="one rank's memory, one layer's update (estimated)")
    for column in ("EP", "ETP", "GiB", "compute ms", "dispatch ms", "gradients ms", ""):
        table.add_column(column, justify="left" if not column else "right")
    for way in ways:
        seconds = (way.compute_seconds, way.dispatch_seconds, way.sync_seconds)
        mark = "advised" if way == advice.division else "" if way.fits else "does not fit"
        table.add_row(
            str(way.ep),
            str(way.etp),
            f"{way.memory_bytes / _GIB:.1f}",
            *(f"{1e3 * part:.2f}" for part in seconds),
            mark,
        )
    return table
