"""A daemon as its own process, for tests: started, waited for, ended by its pid."""

import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from foremoe.rpc.address import parse_address
from foremoe.rpc.channel import open_channel
from foremoe.rpc.credentials import Credentials

START_SECONDS = 240.0


def run_foremoe(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ``foremoe`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "foremoe", *arguments],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        cwd="/",
    )


def free_port() -> int:
    """A TCP port that was free on this machine a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DaemonProcess:
    """``foremoe serve OPTIONS`` at a socket in ``folder`` or at ``listen``; output in ``log``.

    prefix: what runs the command, ``ip netns exec NAME`` say.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        listen: str | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.address = listen or str(folder / "s")
        self.log = folder / "log"
        where = parse_address(self.address).serve_option.split(" ", 1)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "foremoe", "serve", *where, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
            )

    def wait_serving(self) -> Self:
        """Return when the health service says SERVING."""
        with open_channel(parse_address(self.address)) as channel:
            answer = HealthStub(channel).Check(
                HealthCheckRequest(), wait_for_ready=True, timeout=START_SECONDS
            )
        assert answer.status == HealthCheckResponse.SERVING, self.log.read_text()
        return self

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def open_channel(self, credentials: Credentials | None = None) -> grpc.Channel:
        return open_channel(parse_address(self.address), credentials)

    def __enter__(self) -> Self:
        try:
            return self.wait_serving()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.kill()
