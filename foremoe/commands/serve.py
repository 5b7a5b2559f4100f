"""``foremoe serve``: the runtime daemon of this node."""

import argparse
import re
from pathlib import Path

from foremoe.commands.daemon_address import add_address, add_credentials, credentials_of
from foremoe.planner.policies import HOME_POLICIES
from foremoe.planner.preset import preset_names
from foremoe.runtime.config import EVENT_LOOPS, RuntimeConfig
from foremoe.runtime.daemon import serve
from foremoe.runtime.log_lines import LOG_FORMATS, LOG_LEVELS, set_up_logging

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

EXAMPLE = "foremoe serve --socket /tmp/foremoe/runtime.sock --metrics-port 9464"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    defaults = RuntimeConfig(address="")
    add_address(parser, "--listen", "TCP instead of a socket; needs TLS beyond loopback")
    parser.add_argument(
        "--also-listen",
        metavar="HOST:PORT",
        help="TCP beside the socket, for followers and clients of other nodes",
    )
    parser.add_argument(
        "--join",
        metavar="HOST:PORT",
        help="follow the leader there: relay the calls of this node's ranks, plan nothing",
    )
    add_credentials(parser)
    parser.add_argument(
        "--tls-allow",
        metavar="NAME",
        nargs="+",
        default=[],
        help="only these names of client certificates (default: all that --tls-ca signed)",
    )
    parser.add_argument(
        "--memory-limit",
        metavar="BYTES",
        type=parse_bytes,
        default=defaults.memory_limit_bytes,
        help="most bytes of foresight and plans held, with K, M, G or T "
        f"(default {defaults.memory_limit_bytes >> 30}G)",
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
        help=f"imbalance that suffices, 1.0 for the best (default {defaults.target}, with --model "
        "the least estimated time)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FILE.toml",
        help="plan for the least estimated time of this model: "
        f"{', '.join(preset_names('models'))} (default: plan by balance)",
    )
    parser.add_argument(
        "--cluster",
        metavar="NAME|FILE.toml",
        default=defaults.cluster,
        help=f"of --model's estimates: {', '.join(preset_names('clusters'))} (default %(default)s)",
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

    parser.add_argument(
        "--metrics-port",
        metavar="PORT",
        type=int,
        default=defaults.metrics_port,
        help="serve /metrics for Prometheus and /healthz by HTTP; 0 takes a free port "
        "(default: no port)",
    )
    parser.add_argument(
        "--metrics-host",
        metavar="HOST",
        default=defaults.metrics_host,
        help="address of that port (default %(default)s)",
    )
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="text",
        help="json has one object a line (default %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="info",
        help="info has one line a step, debug more (default %(default)s)",
    )
    parser.add_argument(
        "--timeline",
        type=Path,
        metavar="FOLDER",
        help="write there, when the daemon stops, what it planned when, for foremoe report",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    config = RuntimeConfig(
        address=options.address,
        memory_limit_bytes=options.memory_limit,
        max_steps=options.max_steps,
        planning_workers=options.planning_workers,
        policy=options.policy,
        target=_target(options),
        model=options.model,
        cluster=options.cluster,
        drain_seconds=options.drain_seconds,
        event_loop=options.event_loop,
        metrics_port=options.metrics_port,
        metrics_host=options.metrics_host,
        also_listen=options.also_listen,
        join=options.join,
        credentials=credentials_of(options),
        allowed_names=tuple(options.tls_allow),
        timeline=options.timeline,
    )
    set_up_logging(options.log_format, options.log_level)
    serve(config)
    return 0


def _target(options: argparse.Namespace) -> float | None:
    if options.target is None and options.model is None:
        return RuntimeConfig("").target
    target: float | None = options.target
    return target


def parse_bytes(text: str) -> int:
    """``512M`` -> 536870912. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+)([kmgt]?)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 512M or 4G, say")
    return int(match[1]) * _UNITS[match[2]]
