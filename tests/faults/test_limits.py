"""A daemon out of descriptors, memory or disk: it refuses clearly, goes on, and recovers."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from foremoe.client import ControllerClient, MicroStepSchedule, RankClient, RankRegistration
from foremoe.errors import ExhaustedError, NotReadyError, UnavailableError
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually

RANKS, LAYERS, EXPERTS = 8, 512, 8
GROUP = RankRegistration("group", 0, RANKS, RANKS, 1, EXPERTS, tuple(range(LAYERS)))
SPARE_BYTES = 32 << 20
_FULL = """
mount -t tmpfs -o size=16k tmpfs "$1" && chmod 700 "$1" || exit 99
cat /dev/zero > "$1/full" 2>/dev/null
"$2" -m foremoe serve --socket "$1/s"
echo "exit code $?" >&2
rm "$1/full"
"$2" -m foremoe serve --socket "$1/s" --join 127.0.0.1:1 &
while ! [ -S "$1/s" ]; do sleep 0.05; done
kill $! && wait $!
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path, "--metrics-port", "0") as process:
        yield process


def test_without_descriptors_the_connected_go_on_and_the_silent_are_given_up(
    daemon: DaemonProcess,
) -> None:
    pid = daemon.process.pid
    with ControllerClient(daemon.address) as known:
        known.status()
        most = open_files(pid) + 8
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        with ExitStack() as connections:
            for _ in range(16):
                one = connections.enter_context(socket.socket(socket.AF_UNIX))
                one.connect(daemon.address)
            eventually(lambda: open_files(pid) == most)
            port = re.search(r"metrics at http://127.0.0.1:(\d+)", daemon.log.read_text())
            assert port is not None
            connections.enter_context(socket.create_connection(("127.0.0.1", int(port[1]))))
            began, busy = time.monotonic(), cpu_seconds(pid)
            with ControllerClient(daemon.address, timeout_seconds=1.0) as late:
                with pytest.raises(UnavailableError):
                    late.status()
                assert known.status().pid == pid
            assert cpu_seconds(pid) - busy < 0.5 * (time.monotonic() - began), "it spins"
            # Those who say nothing are given up, though they would stay.
            with ControllerClient(daemon.address, retry_seconds=30.0) as late:
                assert late.status().pid == pid


def test_without_memory_a_request_is_refused_and_a_stage_runs_unplanned(
    daemon: DaemonProcess,
) -> None:
    pid = daemon.process.pid
    with ControllerClient(daemon.address) as client, RankClient(daemon.address, GROUP):
        plan(client, 1, micro_steps=1)
        before = client.status().stored_bytes
        most = virtual_bytes(pid) + SPARE_BYTES
        resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
        with pytest.raises(ExhaustedError, match="got no memory for this request"):
            submit(client, 1, Stage.UPDATE, 2000)
        assert client.status().stored_bytes == before
        assert len(client.status().steps[0].stages) == 1
        with pytest.raises(NotReadyError, match="broke off after 0 of 400 micro-steps"):
            plan(client, 2, micro_steps=400)
        plan(client, 3, micro_steps=1)
        for step in (1, 2, 3):
            client.release_step(step)
        assert client.status().stored_bytes == 0
    assert "no memory for /foremoe.rpc.v1.ScheduleService/SubmitSchedule" in daemon.log.read_text()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
def test_a_socket_directory_without_room_is_refused_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _FULL, "sh", str(tmp_path), sys.executable],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=100,
    )
    if done.returncode == 99:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    first, code, *_ = done.stderr.splitlines()
    assert first == (
        f"foremoe serve: socket directory {tmp_path}: No space left on device; "
        "choose another --socket"
    )
    assert code == "exit code 2"


def plan(client: ControllerClient, step: int, micro_steps: int) -> None:
    """Upload a sequence, schedule it often, wait until planning has ended."""
    histogram = np.zeros((LAYERS, EXPERTS), np.uint32)
    histogram[:, 0] = 8
    with client.foresight_stream(step, range(LAYERS), EXPERTS, 2) as stream:
        stream.add("a", histogram=histogram)
    submit(client, step, Stage.RECOMPUTE, micro_steps)
    eventually(lambda: client.status().steps[-1].state == "planned")
    client.wait_planned("group", step, Stage.RECOMPUTE, 0.1)


def submit(client: ControllerClient, step: int, stage: Stage, micro_steps: int) -> None:
    schedule = [MicroStepSchedule(0, [["a"], *[[]] * (RANKS - 1)])] * micro_steps
    client.submit_schedule("group", step, stage, schedule)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def virtual_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
