"""The tutorial as a reader runs it: a daemon, then every block, each printing what it says."""

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foremoe.client import ControllerClient
from foremoe.errors import UnavailableError

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
START_SECONDS = 60.0


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block."""
    return [(found[1], found[2]) for found in BLOCK.finditer(TUTORIAL.read_text())]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, as sockets' paths must be."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.chdir(name)
        yield Path(name)


@contextlib.contextmanager
def daemon(command: str) -> Iterator[None]:
    """The tutorial's own command, until it answers."""
    program, *arguments = command.split()
    assert program == "foremoe"
    with open("daemon.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "foremoe", *arguments], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(arguments[-1]):
            assert process.poll() is None, Path("daemon.log").read_text()
            assert time.monotonic() < deadline, "the daemon does not answer"
        yield
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def _answers(address: str) -> bool:
    try:
        with ControllerClient(address, timeout_seconds=1.0, retry_seconds=1.0) as client:
            client.status()
    except UnavailableError:
        return False
    return True


def test_every_block_runs_and_prints_what_it_says(folder: Path) -> None:
    del folder
    (language, command), *rest = blocks()
    assert language == "sh"
    assert [name for name, _ in rest] == ["python", "text"] * (len(rest) // 2)
    names: dict[str, Any] = {"__name__": "tutorial"}
    with daemon(command.strip()):
        for (_, code), (_, printed) in zip(rest[::2], rest[1::2], strict=True):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(code, str(TUTORIAL), "exec"), names)
            assert said.getvalue() == printed, code
