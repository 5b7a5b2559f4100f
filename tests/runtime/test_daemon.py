"""The daemon as a process: who may reach it, one per socket, how it ends."""

import queue
import stat
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from foremoe.cli import main
from foremoe.client import ControllerClient, RankRegistration
from foremoe.errors import UnavailableError
from foremoe.rpc.registration import encode_registration
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub
from foremoe.rpc.v1.rank_pb2 import StreamPlansRequest
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceStub
from foremoe.rpc.v1.status_pb2 import GetStatusRequest
from foremoe.rpc.v1.status_pb2_grpc import StatusServiceStub
from foremoe.runtime.daemon import LAST_GRACE_SECONDS
from tests.runtime.daemon_process import DaemonProcess, free_port, run_foremoe
from tests.runtime.eventually import eventually
from tests.runtime.uploads import EXPERTS, LAYERS, histogram, upload

SERVICES = {
    "foremoe.rpc.v1.ForesightService",
    "foremoe.rpc.v1.RankService",
    "foremoe.rpc.v1.ScheduleService",
    "foremoe.rpc.v1.StatusService",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A private directory with a short path."""
    tmp_path.chmod(0o700)
    return tmp_path


def open_upload(channel: grpc.Channel) -> tuple[queue.Queue[Any], Any]:
    """An upload that has begun: put its messages, then None."""
    messages: queue.Queue[Any] = queue.Queue()
    call = ForesightServiceStub(channel).UploadForesight.future(iter(messages.get, None))
    return messages, call


def wait_staged(address: str) -> None:
    with ControllerClient(address) as client:
        eventually(lambda: client.status().stored_bytes > 0)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigterm_drains(folder: Path, loop: str) -> None:
    group = RankRegistration("group", 0, 1, 1, 1, EXPERTS, LAYERS)
    with (
        DaemonProcess(folder, "--drain-seconds", "60", "--event-loop", loop) as daemon,
        daemon.open_channel() as channel,
    ):
        health = HealthStub(channel).Watch(HealthCheckRequest(), timeout=30)
        assert next(health).status == HealthCheckResponse.SERVING
        ranks = RankServiceStub(channel)
        ranks.RegisterRank(encode_registration(group))
        plans = ranks.StreamPlans(StreamPlansRequest(ep_group="group"))
        first, *rest = upload(1, {"a": histogram(2, 0, 0, 0), "b": histogram(2, 0, 0, 0)})
        messages, call = open_upload(channel)
        messages.put(first)
        messages.put(rest.pop(0))
        wait_staged(daemon.address)

        daemon.process.terminate()
        assert next(health).status == HealthCheckResponse.NOT_SERVING
        assert list(plans) == []  # ended, not broken
        begin = time.monotonic()
        while time.monotonic() - begin < 3 * LAST_GRACE_SECONDS:
            with pytest.raises(grpc.RpcError, match="draining") as refusal:
                StatusServiceStub(channel).GetStatus(GetStatusRequest(), timeout=10)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        for message in (*rest, None):
            messages.put(message)
        assert call.result(timeout=10).sequences_added == 2
        assert daemon.process.wait(timeout=10) == 0  # long before the drain's end
        assert not Path(daemon.address).exists()


def test_drain_does_not_wait_for_ever(folder: Path) -> None:
    with (
        DaemonProcess(folder, "--drain-seconds", "0.2") as daemon,
        daemon.open_channel() as channel,
    ):
        messages, call = open_upload(channel)
        for message in upload(1, {"a": histogram(2, 0, 0, 0)})[:-1]:
            messages.put(message)
        wait_staged(daemon.address)
        assert daemon.terminate() == 0
        assert call.exception(timeout=10).code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        )
        messages.put(None)


def test_second_daemon_is_refused_and_the_first_goes_on(daemon: DaemonProcess) -> None:
    with ControllerClient(daemon.address) as client:
        before = client.status().daemon_id
    second = run_foremoe("serve", "--socket", daemon.address)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"pid {daemon.process.pid}" in second.stderr
    with ControllerClient(daemon.address) as client:
        assert client.status().daemon_id == before


def test_socket_of_a_killed_daemon_is_taken_over(folder: Path) -> None:
    with DaemonProcess(folder) as first:
        first.kill()
    assert Path(first.address).exists()
    with ControllerClient(first.address) as client:
        with pytest.raises(UnavailableError, match=f"foremoe serve --socket {first.address}"):
            client.status()
        with DaemonProcess(folder) as second:
            assert client.status().pid == second.process.pid


def test_socket_is_private(daemon: DaemonProcess) -> None:
    path = Path(daemon.address)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_open_directory_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.chmod(0o755)
    assert main(["serve", "--socket", str(folder / "s")]) == 2
    assert "mode 755" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--listen", "0.0.0.0:50051"], "refusing to listen at 0.0.0.0:50051 without TLS"),
        (["--listen", "example.com:50051"], "refusing to listen"),
        (["--listen", "[::]:50051"], "refusing to listen"),
        (["--listen", "localhost"], "neither a unix socket path"),
        (["--socket", "/tmp/" + "x" * 200], "107 bytes"),
        (["--socket", "/proc/nowhere/s"], "choose another --socket"),
        (["--memory-limit", "4 apples"], "no size"),
        (["--memory-limit", "0"], "memory_limit_bytes"),
        (["--max-steps", "0"], "max_steps"),
        (["--target", "0.9"], "at least 1.0"),
        (["--target", "nan"], "at least 1.0"),
        (["--drain-seconds", "-1"], "drain_seconds"),
        (["--metrics-port", "65536"], "metrics_port"),
        (["--max-steps", "many"], "invalid int value: 'many'; see foremoe serve --help"),
    ],
)
def test_bad_option_is_one_line_and_exit_2(
    options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), text in error) == (1, True), error


def test_tcp_on_loopback_when_asked_and_only_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    with DaemonProcess(folder, listen=address) as daemon, ControllerClient(address) as client:
        assert client.status().pid == daemon.process.pid
        second = run_foremoe("serve", "--listen", address)
        assert (second.returncode, "cannot listen" in second.stderr) == (2, True)
        assert main(["status", "--connect", address]) == 0
        assert f"pid {daemon.process.pid}" in capsys.readouterr().out


def test_health_and_reflection_name_every_service(daemon: DaemonProcess) -> None:
    with daemon.open_channel() as channel:
        for service in SERVICES:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=10)
            assert answer.status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            HealthStub(channel).Check(HealthCheckRequest(service="no"), timeout=10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        listed = ServerReflectionStub(channel).ServerReflectionInfo(
            iter([ServerReflectionRequest(list_services="")]), timeout=10
        )
        names = {service.name for service in next(listed).list_services_response.service}
    assert names >= SERVICES
