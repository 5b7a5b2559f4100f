"""``foremoe demo``: the main job, on real processes."""

import argparse
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from foremoe.commands.report import require_report
from foremoe.demo.options import DemoOptions
from foremoe.demo.signals import interrupt_at_end_signals
from foremoe.errors import ForemoeError
from foremoe.integrations.versions import check_version
from foremoe.outputs import check_writable
from foremoe.rpc.status_file import SUFFIX, load_status

_HELP = {
    "ranks": "training processes: 2, 4 or 8",
    "steps": "RL steps",
    "seed": "random seed of model, task and sampling",
    "dtype": "float32, or float64 to see how small the differences get; twice the time",
    "router_skew": "initial router weights of the first rank's experts, relative to the others'",
    "spare_slots": "replicas a rank can hold per layer",
    "kill_daemon_at_step": "kill -9 the daemon during the rollout of this step and start another",
    "json": "write every step's figures to this file",
    "timeline": "write what ran when to this file, a Chrome trace for Perfetto and foremoe report",
}

_FILES = ("json", "timeline", "html")
_METAVARS = {"dtype": "TYPE", "router_skew": "X", "ranks": "P", "spare_slots": "R"}

EXAMPLE = "foremoe demo --ranks 2 --steps 4 --json demo.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; defaults come from DemoOptions."""
    defaults = DemoOptions()
    for field in fields(DemoOptions):
        if field.name not in _HELP:
            continue
        value = getattr(defaults, field.name)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=Path if field.name in _FILES else int if value is None else type(value),
            default=value,
            choices=("float32", "float64") if field.name == "dtype" else None,
            metavar=_METAVARS.get(field.name, "FILE" if field.name in _FILES else "N"),
            help=_HELP[field.name] + (f" (default {value})" if value is not None else ""),
        )
    parser.add_argument(
        "--html", type=Path, metavar="FILE.html", help="write a report with figures to this file"
    )


def run(options: argparse.Namespace) -> int:
    """Run it; DemoError when a process fails."""
    from foremoe.demo.supervisor import run_demo

    check_version("transformers")
    if options.html is not None:
        require_report()
    chosen = {name: getattr(options, name) for name in _HELP}
    DemoOptions(**chosen)  # refused before a file is touched
    check_writable(**{name: getattr(options, name) for name in _FILES})
    interrupt_at_end_signals()
    with tempfile.TemporaryDirectory(prefix="foremoe-demo-") as folder:
        if options.html is not None:
            chosen["status"] = Path(folder) / f"demo{SUFFIX}"
        report = run_demo(DemoOptions(**chosen))
        if options.html is not None:
            write_html(options.html, report, chosen["status"])
    return 0


def write_html(path: Path, report: dict[str, Any], status: Path) -> None:
    """What was measured, and all that the run's daemon knew of the last step."""
    from foremoe.report.daemon_chapter import daemon_chapter
    from foremoe.report.demo_chapter import demo_chapter
    from foremoe.report.page import write_report

    source = "foremoe demo"

    def chapters() -> list[Any]:
        measured = demo_chapter(Path(source), report)
        try:
            return [measured, daemon_chapter(load_status(status), source)]
        except ForemoeError as error:  # somebody has killed the daemon
            return [replace(measured, missing=[f"plans and timeline ({error})"])]

    write_report(path, None, chapters)
    print(f"report: {path}")
