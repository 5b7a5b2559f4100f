"""The job's token: without it nothing of the job can be read or changed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from foremoe.cli import main
from foremoe.client import ControllerClient, RankClient
from foremoe.errors import InvalidInputError, UnauthenticatedError
from foremoe.rpc.credentials import Credentials
from foremoe.runtime.follower import SERVICES
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.scrapes import fetch, metrics_address
from tests.runtime.steps import GROUP, Group

TOKEN = "c0ffee" * 6
OTHER = "decade" * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def job(folder: Path) -> Credentials:
    return Credentials(token_file=token_file(folder / "job", TOKEN))


@pytest.fixture(scope="module")
def guarded(folder: Path, job: Credentials) -> Iterator[DaemonProcess]:
    assert job.token_file is not None
    talkative = ["--log-level", "debug", "--metrics-port", "0"]
    with DaemonProcess(folder, "--token-file", job.token_file, *talkative) as daemon:
        yield daemon


def token_file(path: Path, token: str) -> str:
    path.write_text(f"{token}\n")
    path.chmod(0o600)
    return str(path)


def test_a_job_with_its_token_runs_a_step(guarded: DaemonProcess, job: Credentials) -> None:
    registrations = [replace(GROUP, ep_group="job", rank=rank) for rank in range(2)]
    with (
        ControllerClient(guarded.address, credentials=job) as controller,
        RankClient(guarded.address, registrations[0], job) as first,
        RankClient(guarded.address, registrations[1], job) as second,
    ):
        Group(controller, "job", [first, second]).run(1)


def test_every_method_asks_for_the_token(guarded: DaemonProcess, folder: Path) -> None:
    other = Credentials(token_file=token_file(folder / "other", OTHER))
    almost = Credentials(token_file=token_file(folder / "almost", TOKEN[:-1]))
    methods = [(service, method) for service in SERVICES for method in service.methods]
    assert len(methods) >= 8
    for credentials in (Credentials(), other, almost):
        with guarded.open_channel(credentials) as channel:
            for service, method in methods:
                with pytest.raises(grpc.RpcError) as refusal:
                    call_empty(channel, f"/{service.full_name}/{method.name}", method)
                assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert TOKEN[:6] not in (refusal.value.details() or "")


def call_empty(channel: grpc.Channel, path: str, method: Any) -> None:
    """Call a method with empty messages, to the end of its answer."""
    if method.client_streaming:
        channel.stream_unary(path)(iter([b""]), timeout=20)
    elif method.server_streaming:
        list(channel.unary_stream(path)(b"", timeout=20))
    else:
        channel.unary_unary(path)(b"", timeout=20)


def test_health_needs_no_token(guarded: DaemonProcess) -> None:
    with guarded.open_channel(Credentials()) as channel:
        answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=20)
    assert answer.status == HealthCheckResponse.SERVING


def test_a_rank_waits_until_its_token_is_there(guarded: DaemonProcess, folder: Path) -> None:
    """Training is not held up by a token that is late, and need not be restarted for it."""
    credentials = Credentials(token_file=token_file(folder / "late", OTHER))
    with RankClient(guarded.address, replace(GROUP, ep_group="late"), credentials) as rank:
        assert not rank.connected
        token_file(folder / "late", TOKEN)
        eventually(lambda: rank.connected)


def test_commands_take_the_token_from_the_environment(
    guarded: DaemonProcess,
    job: Credentials,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["status", "--socket", guarded.address]) == 2
    assert "FOREMOE_TOKEN_FILE" in capsys.readouterr().err
    monkeypatch.setenv("FOREMOE_TOKEN_FILE", str(job.token_file))
    assert main(["status", "--socket", guarded.address]) == 0
    with ControllerClient(guarded.address) as client:
        assert client.status().pid == guarded.process.pid


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (None, 0o600, "cannot be read"),
        ("short", 0o600, "16 to 512"),
        (f"{TOKEN} {TOKEN}", 0o600, "16 to 512"),
        (f"{TOKEN}é", 0o600, "16 to 512"),
        (TOKEN, 0o644, "chmod 600"),
    ],
)
def test_unfit_token_files_are_one_line(
    content: str | None, mode: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    tmp_path.chmod(0o700)
    assert main(["serve", "--socket", str(tmp_path / "s"), "--token-file", str(path)]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), text in error, TOKEN in error) == (1, True, False)


def test_tokens_do_not_cross_loopback_in_clear_text(
    job: Credentials, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--listen", "127.0.0.1:1", "--token-file", str(job.token_file)]) == 2
    assert "refusing to take tokens in clear text" in capsys.readouterr().err
    with (
        ControllerClient("127.0.0.1:1", credentials=job) as client,
        pytest.raises(InvalidInputError, match="in clear text, where anybody"),
    ):
        client.status()


def test_the_token_is_never_logged(guarded: DaemonProcess, job: Credentials) -> None:
    """After all of the above, at the most talkative level; nor do status, errors and metrics."""
    with ControllerClient(guarded.address, credentials=job) as client:
        assert TOKEN not in repr(client.status())
    with ControllerClient(guarded.address, credentials=Credentials()) as stranger:
        with pytest.raises(UnauthenticatedError) as refusal:
            stranger.status()
        assert TOKEN not in str(refusal.value)
    assert TOKEN not in guarded.log.read_text()
    for page, content in (("metrics", "foremoe_rpcs_total{"), ("healthz", "serving")):
        status, text = fetch(f"{metrics_address(guarded)}/{page}")
        assert (status, content in text, TOKEN in text) == (200, True, False)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
def test_other_users_do_not_reach_the_socket(guarded: DaemonProcess) -> None:
    """gRPC tells nobody a peer's uid; the directory of mode 0700 is what keeps others out."""
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect({guarded.address!r})"
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    for others, expected in (([], 0), (as_nobody, 1)):
        ended = subprocess.run([*others, sys.executable, "-c", connect], capture_output=True)
        assert ended.returncode == expected, ended.stderr
    assert b"PermissionError" in ended.stderr
