"""``foremoe convert --from CARRIER FILE... -o TRACE.npz``: recordings for ``foremoe plan``.

docs/foresight.md says what each carrier's files hold. ``--json`` prints one object::

    {
      "from": str, "trace": str, "sequences": int, "tokens": int, "layers": [int, ...],
      "experts": int, "top_k": int,
      "left_out": [str, ...],            sequences that are not in the trace
      "lost_layers": [int, ...],         layers that no sequence captured
      "padding_rows": int, "missing_rows": int,
      "mixed_weight_versions": int,      sequences that several policies chose for
      "faults": [{"kind": str, "layer": int or null, "sequences": int, "rows": int,
                  "example": str}, ...]
    }
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from foremoe.errors import InvalidInputError
from foremoe.foresight import (
    megatron,
    moe_patch,
    nemo_rl,
    prime_rl,
    sglang,
    skyrl,
    slime,
    verl,
    vllm,
)
from foremoe.foresight.conversion import Conversion, convert
from foremoe.foresight.model import MoeModel, load_model
from foremoe.foresight.recording import Advance
from foremoe.foresight.routing import Fault, Routing
from foremoe.foresight.trace import save_trace
from foremoe.limits import MAX_LAYERS, check_range

_READERS = {
    "vllm": vllm.read,
    "sglang": sglang.read,
    "verl": verl.read,
    "slime": slime.read,
    "nemo-rl": nemo_rl.read,
    "skyrl": skyrl.read,
    "prime-rl": prime_rl.read,
}
CARRIERS = (*_READERS, "megatron", "moe-patch")
_SHAPE = ("num_experts", "top_k", "num_layers")

EXAMPLE = "foremoe convert --from vllm step_12.jsonl --model config.json -o step_12.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--from", dest="carrier", choices=CARRIERS, required=True, help="what recorded the files"
    )
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="recordings; see docs/foresight.md"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="TRACE.npz",
        help="the trace to write, for foremoe plan",
    )
    parser.add_argument(
        "--model", type=Path, metavar="config.json", help="the model's Hugging Face configuration"
    )
    parser.add_argument("--num-experts", type=int, metavar="E", help="in place of --model")
    parser.add_argument("--top-k", type=int, metavar="K", help="in place of --model")
    parser.add_argument(
        "--num-layers", type=int, metavar="L", help="decoder layers, dense ones too"
    )
    parser.add_argument(
        "--moe-layers", metavar="IDS", help="layers that route, as 3-60 or 1,3,5 (default all)"
    )
    parser.add_argument(
        "--first-layer",
        type=int,
        default=0,
        metavar="N",
        help="megatron: first layer of the pipeline stage that wrote the files (default 0)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Convert, write the trace, print the account. Returns the exit code."""
    with _progress(args.files) as advance:
        conversion = convert(_routings(args, advance))
    save_trace(args.output, conversion.trace)
    account = _account(args, conversion)
    if args.json:
        print(json.dumps(account, indent=2))
    else:
        Console().print(_table(account))
    return 0


def _routings(args: argparse.Namespace, advance: Advance) -> Iterator[Routing]:
    if args.carrier == "moe-patch":
        for path in args.files:
            yield from moe_patch.read(path, advance)
    elif args.carrier == "megatron":
        num_experts = _num_experts(args)
        for path in args.files:
            yield from megatron.read(path, num_experts, advance, first_layer=args.first_layer)
    else:
        model = _model(args)
        for path in args.files:
            yield from _READERS[args.carrier](path, model, advance)


def _num_experts(args: argparse.Namespace) -> int:
    """All that a Megatron router trace does not say of the model."""
    if args.num_experts is not None:
        return int(args.num_experts)
    if args.model is None:
        raise InvalidInputError("--num-experts or --model: a Megatron router trace does not say it")
    return load_model(args.model).num_experts


def _model(args: argparse.Namespace) -> MoeModel:
    if args.model is not None:
        return load_model(args.model)
    if any(getattr(args, name) is None for name in _SHAPE):
        raise InvalidInputError(
            f"--from {args.carrier} needs --model, or --num-experts, --top-k and --num-layers"
        )
    check_range(args.num_layers, 1, MAX_LAYERS, "--num-layers")
    layers = range(args.num_layers) if args.moe_layers is None else _layers(args.moe_layers)
    return MoeModel(args.num_experts, args.top_k, args.num_layers, tuple(layers))


def _layers(text: str) -> Iterator[int]:
    """``3-5,9`` as 3, 4, 5, 9."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not re.fullmatch("[0-9]{1,9}", first) or not re.fullmatch("[0-9]{1,9}", last or first):
            raise InvalidInputError(f"--moe-layers: expected ids like 3-60 or 1,3,5, got {text!r}")
        check_range(int(last or first), 0, MAX_LAYERS - 1, "--moe-layers")
        yield from range(int(first), int(last or first) + 1)


@contextmanager
def _progress(files: Sequence[Path]) -> Iterator[Advance]:
    """A bar on the terminal, if there is one, by the bytes read."""
    console = Console(stderr=True)
    total = sum(path.stat().st_size for path in files if path.is_file())
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda size: bar.advance(task, size)


def _account(args: argparse.Namespace, conversion: Conversion) -> dict[str, Any]:
    trace = conversion.trace
    return {
        "from": args.carrier,
        "trace": str(args.output),
        "sequences": trace.sequences,
        "tokens": len(trace.experts),
        "layers": list(trace.layer_ids),
        "experts": trace.num_experts,
        "top_k": int(trace.experts.shape[2]),
        "left_out": list(conversion.left_out),
        "lost_layers": list(conversion.lost_layers),
        "padding_rows": conversion.padding,
        "missing_rows": conversion.missing,
        "mixed_weight_versions": conversion.mixed_versions,
        "faults": _grouped(conversion.faults),
    }


def _grouped(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Faults by kind and layer, in order of appearance."""
    groups: dict[tuple[str, int | None], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.kind, fault.layer), []).append(fault)
    return [
        {
            "kind": kind,
            "layer": layer,
            "sequences": len({fault.sequence for fault in group}),
            "rows": sum(fault.rows for fault in group),
            "example": group[0].sequence,
        }
        for (kind, layer), group in groups.items()
    ]


def _table(account: dict[str, Any]) -> Table:
    table = Table(title=f"{account['from']} -> {account['trace']}", show_header=False)
    left_out = f", {len(account['left_out'])} left out" if account["left_out"] else ""
    table.add_row("sequences", f"{account['sequences']}{left_out}")
    rows = [f"{account[f'{kind}_rows']} {kind}" for kind in ("padding", "missing")]
    table.add_row("tokens", f"{account['tokens']} (rows left out: {', '.join(rows)})")
    table.add_row("layers", f"{len(account['layers'])}: {_ranges(account['layers'])}")
    table.add_row("experts", f"{account['experts']}, {account['top_k']} for each token")
    if account["mixed_weight_versions"]:
        table.add_row("several weight versions", f"{account['mixed_weight_versions']} sequences")
    if account["lost_layers"]:
        table.add_row(
            "layers no sequence has",
            f"{_ranges(account['lost_layers'])} (dense, or a fault of the capture)",
        )
    for fault in _by_kind(account["faults"], set(account["lost_layers"])):
        table.add_row(*fault)
    return table


def _by_kind(faults: Sequence[dict[str, Any]], known: set[int]) -> Iterator[tuple[str, str]]:
    """One row for each kind of fault; layers that no sequence has were named already."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for fault in faults:
        if fault["layer"] not in known:
            kinds.setdefault(fault["kind"], []).append(fault)
    for kind, group in kinds.items():
        layers = sorted(fault["layer"] for fault in group if fault["layer"] is not None)
        where = f", layers {_ranges(layers)}" if layers else ""
        most = max(group, key=lambda fault: fault["sequences"])
        yield kind, f"{most['sequences']} sequences{where}, such as {most['example']}"


def _ranges(layers: Sequence[int]) -> str:
    """3, 4, 5, 9 as ``3-5, 9``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
