"""``foremoe report RUN``: one HTML page of figures, readable without a network.

RUN is what other commands wrote, or a folder of such files: plans (``foremoe plan --plans``), the
JSON of ``foremoe plan`` or ``foremoe demo``, a Chrome trace (``--timeline`` of ``foremoe simulate``
or ``demo``), a daemon's status (``--keep``, or as it stopped). A folder in which ranks and daemons
left their timelines counts as one run; ``--timeline`` writes it as one Chrome trace.
Without RUN the daemon is asked what it holds.

``--json FILE`` writes a list with one object for each run on the page::

    {"title": str, "source": str, "facts": {key: float},
     "charts": {slug: {"finding": str, "columns": [str], "rows": [[str | int | float]]}},
     "missing": [str]}                   what could not be drawn, and why
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from foremoe.commands.daemon_address import add_address, add_credentials, credentials_of
from foremoe.errors import InvalidInputError
from foremoe.timeline.chrome_trace import merged, recorded_traces, write_trace
from foremoe.vocabulary import Stage

if TYPE_CHECKING:
    from foremoe.report.chart import Chapter

EXAMPLE = "foremoe report plans.npz --model gpt-oss-20b --out report.html --figures figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "run", nargs="*", type=Path, metavar="RUN", help="files or folders; none: ask the daemon"
    )
    add_address(parser, "--connect", "a daemon that listens on TCP")
    add_credentials(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE.html",
        help="the page (default %(default)s)",
    )
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="write every figure as PNG and SVG too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all its numbers here")
    parser.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE",
        help="write what ranks and daemons recorded in RUN, a folder, as one Chrome trace",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE.status",
        help="keep what the daemon says in this file, a RUN of its own",
    )
    parser.add_argument(
        "--ep-group", metavar="NAME", help="of a daemon, which to show (default: the worst)"
    )
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="that the plans' ranks are on (default 1)"
    )
    parser.add_argument(
        "--model", metavar="NAME|FILE.toml", help="simulate the plans' timeline with this model"
    )
    parser.add_argument(
        "--cluster", metavar="NAME|FILE.toml", help="of the simulated timeline (default h100)"
    )
    parser.add_argument(
        "--stage", choices=list(Stage), help="of the simulated timeline (default update)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    require_report()
    from foremoe.report.page import write_report

    if options.keep is not None and options.run:
        raise InvalidInputError("--keep: for what a daemon says, without RUN")
    if options.timeline is not None:
        _write_timeline(options.timeline, options.run)
    write_report(options.out, options.figures, lambda: _chapters(options), options.json)
    print(f"report: {options.out}")
    return 0


def _write_timeline(path: Path, runs: list[Path]) -> None:
    files = [file for run in runs if run.is_dir() for file in sorted(run.iterdir())]
    recorded = recorded_traces(files)
    if not recorded:
        raise InvalidInputError("--timeline: RUN is no folder in which ranks left their timelines")
    write_trace(path, merged(recorded.values()))
    print(f"timeline: {path}, for https://ui.perfetto.dev")


def require_report() -> None:
    """Raise InvalidInputError where matplotlib or jinja2 is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InvalidInputError(
            f"a report needs {error.name}; pip install 'foremoe[report]'"
        ) from error


def _chapters(options: argparse.Namespace) -> "list[Chapter]":
    from foremoe.report.plans_chapter import Hardware
    from foremoe.report.sources import chapters_of

    hardware = None
    if options.model:
        stage = Stage(options.stage or Stage.UPDATE)
        hardware = Hardware(options.model, options.cluster or "h100", stage)
    elif options.cluster or options.stage:
        raise InvalidInputError("--cluster and --stage: they need --model as well")
    if not options.run:
        return [_daemon_chapter(options)]
    of = (options.nodes, hardware, options.ep_group)
    return [chapter for path in options.run for chapter in chapters_of(path, *of)]


def _daemon_chapter(options: argparse.Namespace) -> "Chapter":
    from foremoe.client.controller import ControllerClient
    from foremoe.client.detailed_status import detailed_status
    from foremoe.report.daemon_chapter import daemon_chapter
    from foremoe.rpc.status_file import save_status

    with ControllerClient(options.address, credentials=credentials_of(options)) as client:
        status = detailed_status(client)
    chapter = daemon_chapter(status, options.address, options.ep_group)
    if options.keep is not None:
        save_status(options.keep, status)
    return chapter
