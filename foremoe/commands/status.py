"""``foremoe status``: what a running daemon holds."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from foremoe.client.controller import ControllerClient
from foremoe.commands.daemon_address import add_address, add_credentials, credentials_of
from foremoe.rpc.status import RuntimeStatus, StepStatus

EXAMPLE = "foremoe status --socket /tmp/foremoe/runtime.sock --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_address(parser, "--connect", "a daemon that listens on TCP")
    add_credentials(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(options: argparse.Namespace) -> int:
    """Print one snapshot."""
    with ControllerClient(options.address, credentials=credentials_of(options)) as client:
        status = client.status()
    if options.json:
        print(json.dumps(asdict(status), indent=2))
    else:
        print_status(status, Console())
    return 0


def print_status(status: RuntimeStatus, console: Console) -> None:
    """The daemon, its EP groups, then each unreleased step with its stages."""
    console.print(
        f"foremoe {status.version}, pid {status.pid}, up {status.uptime_seconds:.0f} s, "
        f"{status.stored_bytes / 2**20:.1f} of {status.stored_bytes_limit / 2**20:.0f} MiB held",
        highlight=False,
    )
    groups = Table("EP group", "ranks", "registered", "streaming", "spare slots")
    for group in status.ep_groups:
        groups.add_row(
            group.ep_group,
            str(group.ranks),
            str(group.registered),
            str(group.streaming),
            str(group.spare_slots),
        )
    console.print(groups)
    for step in status.steps:
        console.print(f"step {step.step}: {step.state}, {step.sequences} sequences")
        if step.stages:
            console.print(_stage_table(step))


def _stage_table(step: StepStatus) -> Table:
    """Fits into 80 columns: only the group's name and one heading wrap."""
    table = Table("EP group")
    for heading in ("stage", "plans", "imbalance"):
        table.add_column(heading, no_wrap=True)
    table.add_column("replicas a layer", justify="right")
    for heading in ("degraded", "planning"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in step.stages:
        table.add_row(
            stage.ep_group,
            stage.stage,
            f"{stage.planned}/{stage.micro_steps}",
            f"{stage.imbalance_before:.3f} -> {stage.imbalance_after:.3f}",
            f"{stage.replicas:.2f}",
            str(stage.degraded),
            f"{stage.planning_seconds * 1e3:.1f} ms",
        )
    return table
