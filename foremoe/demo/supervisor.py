"""Starts daemon and ranks as processes, shows progress, ends all of them whatever happens."""

import multiprocessing
import queue
import signal
import sys
import tempfile
import traceback
from contextlib import ExitStack
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foremoe.client.controller import ControllerClient
from foremoe.client.detailed_status import detailed_status
from foremoe.demo.daemon import Daemon
from foremoe.demo.options import TIMELINE, DemoOptions
from foremoe.demo.report import describe, summarise
from foremoe.demo.signals import die_with_supervisor, end_signals_blocked, end_signals_held
from foremoe.errors import DemoError, ForemoeError
from foremoe.outputs import write_json
from foremoe.rpc.status_file import save_status
from foremoe.timeline.chrome_trace import merged, recorded_traces, write_trace

SILENCE_SECONDS = 300.0
END_SECONDS = 30.0
WARMUP_WEIGHT = 1 / 16  # of an RL step, for the progress bar


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Run the main job and print what it showed; returns the JSON report."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="foremoe-demo-") as name:
        folder = Path(name)
        recorded = None if options.timeline is None else folder / TIMELINE
        with ExitStack() as stack:
            with console.status(
                "starting the daemon; the first time its kernels are compiled, in a minute"
            ):
                daemon = stack.enter_context(Daemon(folder, recorded))
            steps = _train(options, folder, daemon, console)
            if options.status is not None:
                _save_status(options.status, daemon, console)
        if options.timeline is not None and recorded is not None:
            write_trace(
                options.timeline, merged(recorded_traces(sorted(recorded.iterdir())).values())
            )
            console.print(f"timeline: {options.timeline}, for https://ui.perfetto.dev")
    report = summarise(options, steps)
    console.print(describe(report))
    if options.json is not None:
        write_json(options.json, report)
        console.print(f"figures of every step: {options.json}")
    return report


def _save_status(path: Path, daemon: Daemon, console: Console) -> None:
    """Somebody may have killed the daemon; the run is no worse for it."""
    try:
        with ControllerClient(daemon.address) as client:
            save_status(path, detailed_status(client))
    except ForemoeError as error:
        console.print(f"the daemon's part of the report is missing: {error}")


def _train(
    options: DemoOptions, folder: Path, daemon: Daemon, console: Console
) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["foremoe.demo.rank_main"])  # once for all ranks
    with end_signals_blocked():  # by the fork server and the tracker of semaphores
        forkserver.ensure_running()
    events: Any = context.Queue()
    processes = [
        context.Process(
            target=_rank_process,
            args=(rank, options, folder, daemon.address, events),
            name=f"foremoe-rank-{rank}",
            daemon=True,
        )
        for rank in range(options.ranks)
    ]
    try:
        with console.status("starting the ranks"), end_signals_held():
            _start(processes)
        steps = _follow(options, processes, events, daemon, console)
        for process in processes:
            process.join(timeout=END_SECONDS)
        if failed := [process.name for process in processes if process.exitcode != 0]:
            raise DemoError(f"{', '.join(failed)} did not end as it should after the last step")
        return steps
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            if process.pid is not None:
                process.join()


def _start(processes: list[Any]) -> None:
    try:
        for process in processes:
            process.start()
    except (EOFError, OSError) as error:
        raise DemoError(f"the ranks could not be started: {error or 'see above'}") from error


def _follow(
    options: DemoOptions, processes: list[Any], events: Any, daemon: Daemon, console: Console
) -> list[dict[str, Any]]:
    """Show progress until every step has been reported."""
    steps: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        total = options.warmup_steps * WARMUP_WEIGHT + options.steps
        bar = progress.add_task("starting", total=total)
        while len(steps) < options.steps:
            event = _next_event(processes, events)
            if event["event"] == "warmup":
                text = f"warm-up, loss {event['loss']:.2f}"
                progress.update(bar, advance=WARMUP_WEIGHT, description=text)
            elif event["event"] == "rollout" and event["step"] == options.kill_daemon_at_step:
                daemon.kill()
                console.print(f"step {event['step']}: kill -9 of the daemon; starting another")
                daemon.start()
            elif event["event"] == "step":
                steps.append(event)
                text = f"step {len(steps)}/{options.steps}, reward {event['reward']:.2f}"
                progress.update(bar, advance=1, description=text)
                if not console.is_terminal:
                    console.print(text)
    return steps


def _next_event(processes: list[Any], events: Any) -> dict[str, Any]:
    """Raises DemoError when a rank failed, died or fell silent."""
    waited = 0.0
    while waited < SILENCE_SECONDS:
        try:
            event: dict[str, Any] = events.get(timeout=1.0)
        except queue.Empty:
            waited += 1.0
            if dead := [p.name for p in processes if p.exitcode not in (None, 0)]:
                raise DemoError(f"{', '.join(dead)} died; run again, or report it") from None
            continue
        if event["event"] == "failed":
            if killed := [p.name for p in processes if p.exitcode is not None and p.exitcode < 0]:
                raise DemoError(f"{', '.join(killed)} was killed; run again, or report it")
            raise DemoError(f"rank {event['rank']}: {event['error']}")
        return event
    raise DemoError(f"no rank said anything for {SILENCE_SECONDS:.0f} s")


def _rank_process(rank: int, options: DemoOptions, folder: Path, address: str, events: Any) -> None:
    from foremoe.demo.rank_main import rank_main  # only here: torch takes seconds to import

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor ends the ranks
    die_with_supervisor()
    try:
        rank_main(rank, options, folder, address, events.put)
        return
    except ForemoeError as error:
        events.put({"event": "failed", "rank": rank, "error": str(error)})
    except Exception:  # noqa: BLE001 - the supervisor is told, and ends the others
        events.put({"event": "failed", "rank": rank, "error": traceback.format_exc()})
    sys.exit(1)
