"""A command on a terminal of its own, as over ssh: it can be resized and typed at."""

import codecs
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Self

LONGEST_SECONDS = 60.0
# The terminal becomes the controlling one, so that the kernel sends SIGWINCH and SIGINT, which a
# shell may have told background jobs to ignore.
_MAIN = (
    "import fcntl, signal, sys, termios;"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "from foremoe.cli import main;"
    "sys.exit(main())"
)
_HOME = "\x1b[H"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """``foremoe ARGUMENTS`` on a pseudo-terminal of ``rows`` times ``columns``."""

    def __init__(self, rows: int, columns: int, *arguments: str) -> None:
        self._master, slave = os.openpty()
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # reads end amid characters
        self._resize(rows, columns)
        environment = {**os.environ, "TERM": "xterm-256color"}
        for size in ("COLUMNS", "LINES"):  # would overrule the terminal's
            environment.pop(size, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
            cwd="/",
        )
        os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size and forget what was printed before."""
        self.output = ""
        self._resize(rows, columns)

    def press(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_frame(self, *texts: str) -> list[str]:
        """The first frame that fills the terminal and holds all texts, as lines without colours."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < deadline:
            for frame in self.output.split(_HOME)[1:]:
                lines = _ESCAPES.sub("", frame).replace("\r", "").split("\n")
                fills = [len(line) for line in lines] == [self._columns] * self._rows
                if fills and all(any(text in line for line in lines) for text in texts):
                    return lines
            if select.select([self._master], [], [], 1.0)[0]:
                self._read()
        raise AssertionError(f"no such frame; the last output was {self.output[-4000:]!r}")

    def wait_end(self) -> int:
        """The exit code."""
        while True:  # a terminal that nobody reads would block the process
            try:
                self._read()
            except OSError:  # the other end is closed
                return self.process.wait(timeout=LONGEST_SECONDS)

    def _read(self) -> None:
        self.output += self._decoder.decode(os.read(self._master, 65536))

    def _resize(self, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
