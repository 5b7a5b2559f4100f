"""``foremoe serve``: the runtime daemon of this node."""

import argparse
import logging
import re

from foremoe.errors import InvalidInputError
from foremoe.planner.policies import HOME_POLICIES
from foremoe.rpc.address import default_socket
from foremoe.runtime.config import EVENT_LOOPS, RuntimeConfig
from foremoe.runtime.daemon import serve

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    defaults = RuntimeConfig(address="")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket",
        metavar="PATH",
        help=f"unix socket in a private directory (default {default_socket()})",
    )
    where.add_argument(
        "--listen", metavar="HOST:PORT", help="TCP on a loopback address instead of a socket"
    )
    parser.add_argument(
        "--memory-limit",
        metavar="BYTES",
        default="4G",
        help="most bytes of foresight and plans held, with K, M, G or T (default %(default)s)",
    )
    parser.add_argument(
        "--max-steps",
        metavar="N",
        type=int,
        default=defaults.max_steps,
        help="most unreleased steps (default %(default)s)",
    )
    parser.add_argument(
        "--planning-workers",
        metavar="N",
        type=int,
        default=defaults.planning_workers,
        help="threads that plan (default %(default)s)",
    )
    parser.add_argument(
        "--policy",
        choices=sorted(HOME_POLICIES),
        default=defaults.policy,
        help="how replicas are chosen (default %(default)s)",
    )
    parser.add_argument(
        "--target",
        metavar="IMBALANCE",
        type=float,
        default=defaults.target,
        help="imbalance that suffices, 1.0 for the best (default %(default)s)",
    )
    parser.add_argument(
        "--drain-seconds",
        metavar="SECONDS",
        type=float,
        default=defaults.drain_seconds,
        help="how long running calls may go on after SIGTERM (default %(default)s)",
    )
    parser.add_argument(
        "--event-loop",
        choices=EVENT_LOOPS,
        default=defaults.event_loop,
        help="auto takes uvloop where it is installed (default %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    config = RuntimeConfig(
        address=options.listen or f"unix:{options.socket or default_socket()}",
        memory_limit_bytes=parse_bytes(options.memory_limit),
        max_steps=options.max_steps,
        planning_workers=options.planning_workers,
        policy=options.policy,
        target=options.target,
        drain_seconds=options.drain_seconds,
        event_loop=options.event_loop,
    )
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    serve(config)
    return 0


def parse_bytes(text: str) -> int:
    """``512M`` -> 536870912. Raises InvalidInputError."""
    match = re.fullmatch(r"(\d+)([kmgt]?)", text.strip().lower())
    if match is None:
        raise InvalidInputError(f"--memory-limit: {text!r} is no size; write 512M or 4G, say")
    return int(match[1]) * _UNITS[match[2]]
