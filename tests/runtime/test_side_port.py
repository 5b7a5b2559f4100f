"""The metrics port beside a daemon: health, slow clients, who may reach it, how it ends."""

import socket
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from foremoe.client import ControllerClient
from foremoe.errors import ConflictError
from foremoe.runtime import side_port
from foremoe.runtime.metrics import Snapshot
from foremoe.runtime.side_port import MAX_CONNECTIONS, SidePort
from tests.runtime.daemon_process import DaemonProcess, run_foremoe
from tests.runtime.scrapes import Scrape, fetch, metrics_address
from tests.runtime.test_daemon import open_upload, wait_staged
from tests.runtime.uploads import histogram, upload


def never() -> "Future[Snapshot]":
    """An event loop that hangs."""
    return Future()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_health_follows_the_daemon_to_its_end(folder: Path) -> None:
    with (
        DaemonProcess(folder, "--metrics-port", "0", "--drain-seconds", "60") as daemon,
        daemon.open_channel() as channel,
    ):
        address = metrics_address(daemon)
        assert fetch(address + "/healthz") == (200, "serving\n")
        assert fetch(address + "/")[0] == 404
        _, text = fetch(address + "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        assert Scrape(daemon).value("foremoe_draining") == 0
        health = HealthStub(channel).Watch(HealthCheckRequest(), timeout=30)
        assert next(health).status == HealthCheckResponse.SERVING
        messages, call = open_upload(channel)
        whole = upload(1, {"a": histogram(2, 0, 0, 0)})
        for message in whole[:-1]:
            messages.put(message)
        wait_staged(daemon.address)
        daemon.process.terminate()
        assert next(health).status == HealthCheckResponse.NOT_SERVING
        assert fetch(address + "/healthz") == (503, "draining\n")
        assert Scrape(daemon).value("foremoe_draining") == 1
        messages.put(whole[-1])
        messages.put(None)
        assert call.result(timeout=10).sequences_added == 1
        assert daemon.process.wait(timeout=10) == 0


def test_clients_that_say_nothing_stop_neither_rpcs_nor_scrapes(folder: Path) -> None:
    with DaemonProcess(folder, "--metrics-port", "0") as daemon:
        where = urlsplit(metrics_address(daemon))
        assert where.hostname is not None
        silent = [
            socket.create_connection((where.hostname, where.port or 0))
            for _ in range(MAX_CONNECTIONS - 1)
        ]
        for connection in silent:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
        with ControllerClient(daemon.address, timeout_seconds=5.0) as client:
            assert client.status().pid == daemon.process.pid
        assert Scrape(daemon).value("foremoe_rpcs_total", method="GetStatus", code="OK") == 1
        one_more = [socket.create_connection((where.hostname, where.port or 0)) for _ in range(2)]
        one_more[0].sendall(b"GET /healthz HTTP/1.0\r\n")
        one_more[1].settimeout(10)
        assert one_more[1].recv(100) == b""  # turned away at once, not kept waiting
        for connection in (*silent, *one_more):
            connection.close()


def test_port_is_on_loopback_only(folder: Path) -> None:
    with DaemonProcess(folder, "--metrics-port", "0") as daemon:
        port = urlsplit(metrics_address(daemon)).port or 0
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(ConnectionRefusedError):  # what listens everywhere listens here too
            socket.create_connection(("127.0.0.2", port))


def test_taken_port_is_one_line_and_the_socket_stays_free(folder: Path) -> None:
    with DaemonProcess(folder, "--metrics-port", "0") as daemon:
        port = str(urlsplit(metrics_address(daemon)).port)
        other = folder / "other"
        second = run_foremoe("serve", "--socket", str(other), "--metrics-port", port)
        assert second.returncode == 2
        lines = [line for line in second.stderr.splitlines() if "--metrics-port" in line]
        assert lines == [second.stderr.splitlines()[-1]]
        assert f"cannot listen at 127.0.0.1:{port}" in lines[0]
        assert not other.exists()


def test_event_loop_that_hangs_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_port, "SNAPSHOT_SECONDS", 0.01)
    port = SidePort("127.0.0.1", 0, never)
    try:
        address = f"http://127.0.0.1:{port.port}"
        assert fetch(address + "/healthz") == (503, "the event loop does not answer\n")
        assert fetch(address + "/metrics")[0] == 503
        with pytest.raises(ConflictError, match="choose another --metrics-port"):
            SidePort("127.0.0.1", port.port, never)
    finally:
        port.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port.port))
