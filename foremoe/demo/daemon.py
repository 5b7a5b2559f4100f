"""The demo's own runtime daemon."""

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from foremoe.client.controller import ControllerClient
from foremoe.demo.signals import die_with_parent
from foremoe.errors import DemoError, UnavailableError

START_SECONDS = 240.0


class Daemon:
    """``foremoe serve`` on a private socket, as its own process."""

    def __init__(self, folder: Path, timeline: Path | None = None) -> None:
        """timeline: a folder for what it planned when; None for no record."""
        self._folder = folder
        self._options = [] if timeline is None else ["--timeline", str(timeline)]
        self._log = folder / "daemon.log"
        self.address = f"unix:{folder / 'runtime' / 'foremoe.sock'}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        socket = self.address.removeprefix("unix:")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "foremoe", "serve", "--socket", socket, *self._options],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"the daemon did not start: {self.last_line()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9, as a test of what it costs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with ControllerClient(self.address, timeout_seconds=1.0) as client:
                client.status()
        except UnavailableError:
            return False
        return True

    def last_line(self) -> str:
        """What it said last."""
        lines = self._log.read_text().strip().splitlines()
        return lines[-1] if lines else "(it printed nothing)"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self)  # a daemon that does not answer ends as well
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
