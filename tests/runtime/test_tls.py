"""Mutual TLS: who gets in by TCP, who does not and is told why, and certificates that change."""

from dataclasses import replace
from pathlib import Path

import pytest

from foremoe.cli import main
from foremoe.client import ControllerClient, RankClient
from foremoe.errors import InvalidInputError, UnauthenticatedError, UnavailableError
from foremoe.rpc.credentials import Credentials
from tests.runtime.certificates import Authority, needs_openssl, tls_options
from tests.runtime.daemon_process import DaemonProcess, free_port
from tests.runtime.eventually import eventually
from tests.runtime.steps import GROUP

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("strangers"))


def pid_seen(address: str, credentials: Credentials) -> int:
    with ControllerClient(address, credentials=credentials) as client:
        return client.status().pid


def test_only_certificates_of_the_authority_get_in(
    tmp_path: Path, authority: Authority, strangers: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beyond loopback, on every address of the machine, with clients of all kinds."""
    shown, rank = authority.issue("leader"), authority.issue("rank")
    port = free_port()
    options = ["--also-listen", f"0.0.0.0:{port}", *tls_options(shown)]
    with DaemonProcess(tmp_path, *options) as daemon:
        pid, address = daemon.process.pid, f"127.0.0.1:{port}"
        assert pid_seen(daemon.address, Credentials()) == pid  # its own socket needs none
        assert pid_seen(address, rank) == pid
        with RankClient(address, replace(GROUP, ep_group="tls"), rank) as client:
            eventually(lambda: client.connected)
        assert main(["status", "--connect", address, *tls_options(rank)]) == 0
        assert main(["top", "--once", "--connect", address, *tls_options(rank)]) == 0
        capsys.readouterr()

        stranger = strangers.issue("rank")
        for wrong in (Credentials(), replace(stranger, tls_ca=rank.tls_ca)):
            with pytest.raises(UnavailableError, match="does it expect TLS and another cert"):
                pid_seen(address, wrong)
        with pytest.raises(UnavailableError, match=r"certificate shown at .* is not accepted"):
            pid_seen(address, stranger)
        assert main(["status", "--connect", address, *tls_options(stranger)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_daemon_of_another_name_is_not_believed(tmp_path: Path, authority: Authority) -> None:
    shown, port = authority.issue("elsewhere"), free_port()
    address = f"127.0.0.2:{port}"  # the certificate names 127.0.0.1
    with (
        DaemonProcess(tmp_path, "--also-listen", address, *tls_options(shown)),
        pytest.raises(UnavailableError, match="is not accepted here"),
    ):
        pid_seen(address, shown)


def test_only_allowed_names_get_in(tmp_path: Path, authority: Authority) -> None:
    shown = authority.issue("leader")
    address = f"127.0.0.1:{free_port()}"
    allowed = ["--tls-allow", "node1", "spiffe://foremoe/node2"]
    with DaemonProcess(tmp_path, "--also-listen", address, *tls_options(shown), *allowed) as daemon:
        assert pid_seen(daemon.address, Credentials()) == daemon.process.pid
        assert pid_seen(address, authority.issue("node1")) == daemon.process.pid
        by_uri = authority.issue("other", "URI:spiffe://foremoe/node2")
        assert pid_seen(address, by_uri) == daemon.process.pid
        with pytest.raises(UnauthenticatedError, match="names are none of those"):
            pid_seen(address, authority.issue("node3"))


def test_certificates_are_replaced_without_a_restart(
    tmp_path: Path, authority: Authority, strangers: Authority
) -> None:
    """A new authority: its clients get in, those of the old one do not; open streams go on."""
    shown, old = authority.issue("leader", file="moving"), authority.issue("rank")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.ca.read_bytes())
    shown = replace(shown, tls_ca=str(ca))
    address = f"127.0.0.1:{free_port()}"
    with (
        DaemonProcess(tmp_path, "--also-listen", address, *tls_options(shown)) as daemon,
        RankClient(address, replace(GROUP, ep_group="moving"), old) as rank,
    ):
        eventually(lambda: rank.connected)
        new = strangers.issue("rank")
        assert shown.tls_cert is not None
        assert shown.tls_key is not None
        good = Path(shown.tls_cert).read_bytes()
        Path(shown.tls_cert).write_bytes(b"half a certif")  # as a careless copy leaves it
        assert pid_seen(address, old) == daemon.process.pid
        assert "TLS goes on with the files read before" in daemon.log.read_text()
        Path(shown.tls_cert).write_bytes(good)

        moved = strangers.issue("leader")
        assert moved.tls_cert is not None
        assert moved.tls_key is not None
        Path(shown.tls_key).write_bytes(Path(moved.tls_key).read_bytes())
        Path(shown.tls_cert).write_bytes(Path(moved.tls_cert).read_bytes())
        ca.write_bytes(strangers.ca.read_bytes())
        assert pid_seen(address, new) == daemon.process.pid
        with pytest.raises(UnavailableError):
            pid_seen(address, old)
        assert rank.connected


@pytest.mark.parametrize("broken", ["--tls-cert", "--tls-key", "--tls-ca"])
def test_files_that_cannot_be_used_are_one_line(
    broken: str, tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tls_options(authority.issue("broken"))
    place = given.index(broken) + 1
    for content in (None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path = tmp_path / "file"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
            path.chmod(0o600)
        given[place] = str(path)
        for command in (["serve", "--listen", "127.0.0.1:1"], ["status", "--connect", "a:1"]):
            assert main([*command, *given]) == 2
            error = capsys.readouterr().err
            assert (error.count("\n"), broken in error) == (1, True), error
    missing = [word for index, word in enumerate(given) if index not in (place - 1, place)]
    assert main(["status", "--connect", "a:1", *missing]) == 2
    assert f"three files; {broken} not given" in capsys.readouterr().err


def test_a_key_that_everybody_can_read_is_refused(
    authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    given = authority.issue("open")
    assert given.tls_key is not None
    Path(given.tls_key).chmod(0o644)
    assert main(["serve", "--listen", "127.0.0.1:1", *tls_options(given)]) == 2
    assert "chmod 600" in capsys.readouterr().err


def test_beyond_loopback_nothing_is_sent_in_clear_text() -> None:
    with (
        ControllerClient("example.com:1", credentials=Credentials()) as client,
        pytest.raises(InvalidInputError, match="mutual TLS only"),
    ):
        client.status()
    with pytest.raises(InvalidInputError, match="mutual TLS only"):
        RankClient("example.com:1", GROUP, Credentials()).start()
