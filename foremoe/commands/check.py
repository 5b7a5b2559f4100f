"""``foremoe check``: whether this node is ready, and what to do where it is not.

``--json`` prints one object::

    {"ready": bool, "findings": [{"what": str, "state": "ok" | "warning" | "failed",
                                  "found": str, "cure": str}]}
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foremoe.advice import advise
from foremoe.commands.advise import add_arguments as add_advise_arguments
from foremoe.commands.advise import limits_of
from foremoe.commands.check_finding import Finding, State, finding
from foremoe.commands.check_node import node_findings
from foremoe.commands.check_versions import installed, loaded, version_findings
from foremoe.commands.daemon_address import add_address, add_credentials, credentials_of
from foremoe.commands.serve import parse_bytes
from foremoe.errors import InvalidInputError
from foremoe.progress import working
from foremoe.simulation.cluster import machine

EXAMPLE = "foremoe check --model qwen3-30b-a3b --cluster h100x64"
_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--cache-directory",
        metavar="DIR",
        type=Path,
        default=Path("/dev/shm"),
        help="where the host cache will lie, as in AttachOptions (default %(default)s)",
    )
    parser.add_argument(
        "--cache-bytes",
        metavar="BYTES",
        type=parse_bytes,
        help="what it will take on this node, with K, M, G or T",
    )
    parser.add_argument("--model", metavar="NAME", help="or what foremoe advise says for a model")
    parser.add_argument(
        "--cluster", metavar="NAMExRANKS", help="on a cluster, as foremoe advise takes them"
    )
    parser.add_argument(
        "--wait-seconds",
        metavar="SECONDS",
        type=_seconds,
        default=20.0,
        help="for each transport and for the daemon, at most (default %(default)s)",
    )
    add_address(parser, "--connect", "a daemon that listens on TCP")
    add_credentials(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Look at everything; 0 when all that is necessary works, 1 when something does not."""
    cache_bytes = _cache_bytes(options)
    with working("trying what is here"):
        findings = list(version_findings(installed(), loaded()))
        findings += _transport_findings(options.cache_directory, options.wait_seconds)
        findings += node_findings(
            options.cache_directory,
            cache_bytes,
            options.address,
            credentials_of(options),
            options.wait_seconds,
        )
    ready = all(each.state is not State.FAILED for each in findings)
    if options.json:
        rows = [asdict(each) for each in findings]
        print(json.dumps({"ready": ready, "findings": rows}, indent=2))
    else:
        _show(findings, ready, Console())
    return 0 if ready else 1


def _cache_bytes(options: argparse.Namespace) -> int:
    """What the host cache will take, 0 when nothing was said."""
    if (options.model is None) != (options.cluster is None):
        raise InvalidInputError("give --model and --cluster together, or --cache-bytes")
    if options.model is None:
        return int(options.cache_bytes or 0)
    if options.cache_bytes is not None:
        raise InvalidInputError("give --cache-bytes, or --model and --cluster, not both")
    parser = argparse.ArgumentParser()
    add_advise_arguments(parser)
    given = parser.parse_args(["--model", options.model, "--cluster", options.cluster])
    return int(advise(machine(options.model, options.cluster, None), limits_of(given)).cache_bytes)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write a number of seconds above 0")
    return seconds


def _transport_findings(directory: Path, wait_seconds: float) -> Iterator[Finding]:
    """Loads torch."""
    from foremoe.transfer.probes import CPU, CUDA
    from foremoe.transfer.transport import ProbeSite

    site = ProbeSite(directory, wait_seconds)
    for kinds, necessary, cure in (
        (CPU, True, "mend what the reason names"),
        (CUDA, False, "for experts on a GPU; where it fails the next one of its path serves"),
    ):
        for kind in kinds:
            probe = kind.probe(site)
            what = f"{probe.path} path: {probe.name}"
            yield finding(what, probe.works, probe.reason, cure, necessary=necessary)


def _show(findings: list[Finding], ready: bool, console: Console) -> None:
    table = Table(box=SIMPLE, show_header=False)
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    for each in findings:
        table.add_row(Text(each.state, _COLOURS[each.state]), each.what, Text(each.found))
    console.print(table, highlight=False)
    for state in (State.WARNING, State.FAILED):
        cures: dict[str, list[str]] = {}
        for each in findings:
            if each.state is state:
                cures.setdefault(each.cure, []).append(each.what)
        for cure, what in cures.items():
            line = Text.assemble((f"{state}: ", _COLOURS[state]), f"{', '.join(what)}: {cure}")
            console.print(line, soft_wrap=True)
    if ready:
        console.print("[green]ready[/]")
    else:
        failed = ", ".join(each.what for each in findings if each.state is State.FAILED)
        console.print(f"[red]not ready[/], must work: {failed}", highlight=False, soft_wrap=True)
