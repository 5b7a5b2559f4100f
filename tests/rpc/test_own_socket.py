"""Clients do not talk to what another user left at their socket's place, nor show it a token."""

import os
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from foremoe.client import ControllerClient
from foremoe.errors import ForemoeError
from foremoe.rpc import own_socket
from foremoe.rpc.credentials import Credentials

TOKEN = "c0ffee" * 6
NO_TOKEN = Credentials()
STRANGER = 12345


class Impostor(grpc.GenericRpcHandler):  # type: ignore[misc]  # no types in grpc
    """Answers nothing and keeps what it is shown with every call."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> None:
        metadata = dict(details.invocation_metadata)
        self.shown.append(str(metadata.get("authorization", "nothing")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "s"


@pytest.fixture
def impostor(path: Path) -> Iterator[Impostor]:
    """A server of somebody's at ``path``."""
    listening = Impostor()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(listening,))
    server.add_secure_port(
        f"unix:{path}", grpc.local_server_credentials(grpc.LocalConnectionType.UDS)
    )
    server.start()
    yield listening
    server.stop(None).wait()


@pytest.fixture
def job(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    return Credentials(token_file=str(token))


def ask(path: Path, credentials: Credentials) -> str:
    """What a client says that cannot get an answer."""
    with ControllerClient(str(path), timeout_seconds=5, credentials=credentials) as client:
        return ask_again(client)


def ask_again(client: ControllerClient) -> str:
    with pytest.raises(ForemoeError) as refusal:
        client.status()
    return str(refusal.value)


def test_a_folder_of_another_user(
    path: Path, impostor: Impostor, job: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "belongs to user" not in ask(path, job)
    assert impostor.shown == [f"Bearer {TOKEN}"]  # our own folder: this is how it would go
    monkeypatch.setattr(own_socket.os, "geteuid", lambda: STRANGER)
    for credentials in (job, NO_TOKEN):
        assert f"belongs to user {os.getuid()}, not to user {STRANGER}" in ask(path, credentials)
    assert len(impostor.shown) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_root_asks_any_users_daemon_but_shows_no_token(
    path: Path, impostor: Impostor, job: Credentials
) -> None:
    os.chown(path.parent, STRANGER, -1)
    assert f"belongs to user {STRANGER}" in ask(path, job)
    assert impostor.shown == []
    assert "belongs to user" not in ask(path, NO_TOKEN)
    assert impostor.shown == ["nothing"]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_to(path: Path, impostor: Impostor, mode: int) -> None:
    path.parent.chmod(mode)
    assert f"mode {mode:o}" in ask(path, NO_TOKEN)
    assert impostor.shown == []


def test_a_folder_that_changes_hands_later(
    path: Path, impostor: Impostor, job: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open client looks again before every call."""
    with ControllerClient(str(path), timeout_seconds=5, credentials=job) as client:
        ask_again(client)
        monkeypatch.setattr(own_socket.os, "geteuid", lambda: STRANGER)
        ask_again(client)
    assert len(impostor.shown) == 1


def test_no_folder_is_no_daemon_yet(tmp_path: Path) -> None:
    own_socket.check_own(str(tmp_path / "later" / "s"), shows_token=True)
