"""``foremoe top``: a running daemon, watched.

It asks for one status every ``--interval`` seconds and nothing of it is kept. ``--once --json``
prints one object: the fields of foremoe.rpc.status.RuntimeStatus, and in ``ep_groups[].latest[]``
the ``throughput`` of each path in bytes per second of the stage's micro-steps.
"""

import argparse
import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from rich.console import Console
from rich.live import Live

from foremoe.client.controller import ControllerClient
from foremoe.commands.daemon_address import add_address, add_credentials, credentials_of
from foremoe.commands.top_screen import Screen, throughput
from foremoe.errors import InvalidInputError, UnavailableError
from foremoe.rpc.status import RuntimeStatus

FILE_WIDTH = 160
EXAMPLE = "foremoe top --socket /tmp/foremoe/runtime.sock --once --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_address(parser, "--connect", "a daemon that listens on TCP")
    add_credentials(parser)
    parser.add_argument(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time between two looks (default %(default)s)",
    )
    parser.add_argument(
        "--ep-group", metavar="NAME", help="whose layers and ranks to show (default: the worst)"
    )
    parser.add_argument("--once", action="store_true", help="print once and end")
    parser.add_argument("--json", action="store_true", help="with --once: JSON instead of tables")


def run(options: argparse.Namespace) -> int:
    """Watch until Ctrl-C, or print once."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    if options.json and not options.once:
        raise InvalidInputError("--json: needs --once")
    if not 0.05 <= options.interval <= 3600:
        raise InvalidInputError(f"--interval: must lie in [0.05, 3600], got {options.interval}")
    with ControllerClient(options.address, credentials=credentials_of(options)) as client:
        if options.once:
            status = client.status()
            if options.json:
                print(json.dumps(as_json(status), indent=2))
            else:
                console.print(Screen(status, options.ep_group))
            return 0
        if not console.is_terminal:
            raise InvalidInputError("the output is no terminal; use --once, or --once --json")
        return _watch(client, console, options)


def as_json(status: RuntimeStatus) -> dict[str, object]:
    """The status, and the throughput of each path where there is one."""
    content = asdict(status)
    for group, shown in zip(status.ep_groups, content["ep_groups"], strict=True):
        for detail, stage in zip(group.latest, shown["latest"], strict=True):
            stage["throughput"] = throughput(detail.status)
    return content


def _watch(client: ControllerClient, console: Console, options: argparse.Namespace) -> int:
    screen = Screen(client.status(), options.ep_group, fit=True)
    with (
        _resizes() as resized,
        Live(screen, console=console, screen=True, auto_refresh=False) as live,
    ):
        try:
            while True:
                live.refresh()
                if select.select([resized], [], [], options.interval)[0]:
                    os.read(resized, 4096)
                try:
                    screen = Screen(client.status(), options.ep_group, fit=True)
                except UnavailableError as error:
                    screen = replace(screen, notice=f"trying again: {error}")
                live.update(screen)
        except KeyboardInterrupt:
            return 0


@contextmanager
def _resizes() -> Iterator[int]:
    """A descriptor that is readable after a signal: one just before a wait would not end it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handler = signal.signal(signal.SIGWINCH, lambda *_: None)  # not the default: ignored
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGWINCH, handler)
        os.close(reader)
        os.close(writer)
