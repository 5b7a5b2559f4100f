"""The daemon that is measured, as a process of its own, and what the kernel says of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

START_SECONDS = 240.0


class MeasuredDaemon:
    """``foremoe serve`` at the socket ``address`` in ``folder``; its output is in ``log``."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.address = str(folder / "s")
        self.log = folder / "log"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "foremoe", "serve", "--socket", self.address, *options],
                stdout=output,
                stderr=output,
            )

    def resident_bytes(self) -> int:
        """Memory that is this process's own and in use now."""
        return self._status("RssAnon")

    def peak_bytes(self) -> int:
        """Most memory it ever had, files of the system's libraries included."""
        return self._status("VmHWM")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def processor_seconds(self) -> float:
        """User and system time of all its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, key: str) -> int:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))

    def __enter__(self) -> Self:
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            HealthStub(channel).Check(
                HealthCheckRequest(), wait_for_ready=True, timeout=START_SECONDS
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
