"""``foremoe top``: on a real terminal with a real daemon, and cut to any size."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from foremoe.cli import main
from foremoe.commands.top_screen import Screen
from foremoe.rpc.status import (
    EpGroupStatus,
    LayerStatus,
    PathStatus,
    RankStatus,
    RuntimeStatus,
    StageDetail,
    StageStatus,
)
from foremoe.vocabulary import Stage
from tests.commands.terminal import Terminal
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.steps import LAYERS, attached

NAME = "an-ep-group-with-a-long-name"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def imbalance(stage: StageStatus) -> str:
    """As the screen has it."""
    return f"{stage.imbalance_before:.3f} -> {stage.imbalance_measured:.3f}"


def test_follows_steps_sizes_and_restarts_until_ctrl_c(folder: Path) -> None:
    with DaemonProcess(folder) as daemon:
        arguments = ("top", "--socket", daemon.address, "--interval", "0.1")
        with attached(daemon, "ep0") as group, Terminal(40, 140, *arguments) as terminal:
            terminal.wait_frame("no plan has been made yet", f"pid {daemon.process.pid}")
            group.run(1)
            change = imbalance(group.status(1, Stage.UPDATE))
            layers = [f" {layer} " for layer in LAYERS]
            terminal.wait_frame("imbalance of layers of ep0", "slowest ranks", change, *layers)
            terminal.resize(18, 80)
            terminal.wait_frame("imbalance of layers of ep0", change)
            group.run(2)
            terminal.wait_frame("2 executing", imbalance(group.status(2, Stage.UPDATE)))
            daemon.kill()
            terminal.wait_frame("trying again", "2 executing")
            with DaemonProcess(folder) as second:
                terminal.wait_frame(f"pid {second.process.pid}")
                terminal.press("\x03")
                assert terminal.wait_end() == 0
            # Left as it was found: the usual screen, with a cursor.
            assert {"\x1b[?1049l", "\x1b[?25h"} <= set(re.findall(r"\x1b\[\?\w+", terminal.output))


def test_a_resize_is_drawn_at_once(folder: Path) -> None:
    with (
        DaemonProcess(folder) as daemon,
        Terminal(30, 100, "top", "--socket", daemon.address, "--interval", "3600") as terminal,
    ):
        terminal.wait_frame("no plan")
        for rows, columns in ((20, 60), (25, 90), (12, 70)):
            terminal.resize(rows, columns)
            terminal.wait_frame("no plan")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "the output is no terminal; use --once"),
        (["--json"], "--json: needs --once"),
        (["--interval", "0"], "--interval: must lie in"),
        (["--interval", "nan"], "--interval: must lie in"),
        (["--once"], "no runtime answers"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_exit_2(
    options: list[str], text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--socket", str(folder / "s"), *options]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), text in error) == (1, True), error


def detail(stage: Stage, layers: int) -> StageDetail:
    paths = tuple(PathStatus(path, 5, 3 << 30) for path in ("host", "peer", "gradient"))
    status = StageStatus(NAME, stage, 64, 64, 1.5, 1.01, 3.0, 2, 0.1, 64, 20.0, 0.1, 1.02)
    return StageDetail(
        7,
        replace(status, paths=paths),
        tuple(LayerStatus(i, 1.5, 1.01, 1.0 + i / 1000, 0.01) for i in range(layers)),
        tuple(RankStatus(rank, 1.1 - rank / 100, 0.01, 20.0) for rank in range(8)),
    )


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 30), (200, 60), (60, 18)])
def test_screen_fits_and_keeps_the_worst_layers(columns: int, rows: int) -> None:
    latest = tuple(detail(stage, 94) for stage in Stage)
    group = EpGroupStatus(NAME, 64, 64, 64, 2, latest)
    status = RuntimeStatus("0.1.0", "id", 1, 100.0, 1, 2, (group,), ())
    console = Console(width=columns, height=rows, color_system=None)
    with console.capture() as capture:
        console.print(Screen(status, fit=True))
    lines = capture.get().splitlines()
    assert len(lines) <= rows
    assert any(line.split()[:3] == ["93", "1.500", "->"] for line in lines)
    assert any("rank 0" in line for line in lines)
    with console.capture() as capture:
        console.print(Screen(status))
    whole = capture.get().splitlines()
    assert all(any(line.split()[:1] == [str(layer)] for line in whole) for layer in range(94))
