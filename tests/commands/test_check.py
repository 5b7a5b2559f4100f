"""foremoe check: rows, exit code, and clashes of packages told from real metadata."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foremoe import __version__
from foremoe.cli import main
from foremoe.commands.check_finding import Finding, State
from foremoe.commands.check_versions import (
    Loaded,
    installed,
    loaded,
    version_findings,
    within,
)
from foremoe.errors import TransferError
from foremoe.transfer.cupy_wire import cupy_nccl
from tests.runtime.daemon_process import DaemonProcess

CPU = Loaded("2.13.0", None, None, None, None)
CUDA = Loaded("2.13.0", "13.0", (2, 29, 7), "14.2.0", (2, 29, 7))


def _check(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["check", "--json", *options])
    printed = json.loads(capsys.readouterr().out)
    rows = {row["what"]: row for row in printed["findings"]}
    assert printed["ready"] == (code == 0)
    assert code == any(row["state"] == "failed" for row in rows.values())
    for row in rows.values():
        assert bool(row["cure"]) == (row["state"] != "ok"), row
    return code, rows


def test_this_machine_is_ready_with_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caches, private = tmp_path / "caches", tmp_path / "private"
    caches.mkdir()
    private.mkdir(mode=0o700)
    with DaemonProcess(private) as daemon:
        place = ["--socket", daemon.address, "--cache-directory", str(caches)]
        code, rows = _check(capsys, *place)
    assert code == 0, rows
    for what in ("host path: shared-memory host copy", "peer path: gloo peer"):
        assert (rows[what]["state"], "256 KiB" in rows[what]["found"]) == ("ok", True)
    assert f"version {__version__}, pid {daemon.process.pid}" in rows["daemon"]["found"]
    assert rows["socket directory"]["state"] == "ok"
    assert list(caches.iterdir()) == []


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_wait_takes_some_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--wait-seconds", seconds]) == 2
    assert "--wait-seconds" in capsys.readouterr().err


def test_a_broken_cupy_is_a_row_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "cupy" / "__init__.py"
    stub.parent.mkdir()
    stub.write_text("raise ValueError('numpy.dtype size changed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    used = loaded()
    assert used.cupy_broken == "ValueError: numpy.dtype size changed"
    row = next(row for row in version_findings(installed(), used) if row.what == "CuPy")
    assert row.state is State.WARNING
    assert "numpy.dtype size changed" in row.found
    with pytest.raises(TransferError, match=r"numpy\.dtype size changed"):
        cupy_nccl()


def test_what_is_necessary_and_does_not_work_is_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    socket = tmp_path / "open" / "s"
    missing = tmp_path / "missing"
    code, rows = _check(capsys, "--socket", str(socket), "--cache-directory", str(missing))
    failed = {what for what, row in rows.items() if row["state"] == "failed"}
    assert code == 1
    assert failed == {
        "host path: shared-memory host copy",
        "host cache directory",
        "host cache space",
        "socket directory",
    }
    assert "is open to other users (mode 755)" in rows["socket directory"]["found"]
    assert (rows["daemon"]["state"], socket.exists()) == ("warning", False)


def test_a_host_cache_that_does_not_fit_is_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ["--cache-directory", str(tmp_path), "--socket", str(tmp_path / "private" / "s")]
    assert main(["check", *space, "--cache-bytes", "900T"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "the host cache takes 921600.0 GiB" in shown
    assert "not ready, must work: host cache space" in shown


def _install(directory: Path, name: str, version: str) -> None:
    """What a wheel leaves behind as metadata."""
    folder = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _rows(used: Loaded) -> dict[str, Finding]:
    return {row.what: row for row in version_findings(installed(), used)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_two_nccl_wheels_clash(site: Path) -> None:
    _install(site, "nvidia-nccl-cu13", "2.29.7")
    assert {row.state for row in _rows(CUDA).values()} <= {State.OK, State.WARNING}
    assert _rows(CUDA)["NCCL wheels"].state is State.OK
    _install(site, "nvidia-nccl-cu12", "2.32.3")
    clash = _rows(CUDA)["NCCL wheels"]
    assert clash.state is State.FAILED
    assert clash.found == "nvidia-nccl-cu12 2.32.3, nvidia-nccl-cu13 2.29.7"
    assert _rows(CPU)["NCCL wheels"].state is State.WARNING


def test_nccl_that_is_not_the_wheels_is_told(site: Path) -> None:
    _install(site, "nvidia-nccl-cu13", "2.29.7")
    assert _rows(CUDA)["NCCL in use"].state is State.OK
    for other in (
        replace(CUDA, torch_nccl=(2, 28, 9), cupy_nccl=None),
        replace(CUDA, cupy_nccl=(2, 27, 5)),
    ):
        row = _rows(other)["NCCL in use"]
        assert (row.state, "the wheel is 2.29.7" in row.found) == (State.WARNING, True)
    assert _rows(CPU)["NCCL in use"].state is State.OK


def test_cupy_for_another_cuda_is_told(site: Path) -> None:
    assert "pip install 'foremoe[cuda13]'" in _rows(CUDA)["CuPy"].cure
    _install(site, "cupy-cuda12x", "14.2.0")
    row = _rows(CUDA)["CuPy"]
    assert row.state is State.WARNING
    assert row.found == "cupy-cuda12x 14.2.0; torch is built for CUDA 13.0"
    assert _rows(replace(CUDA, torch_cuda="12.8"))["CuPy"].state is State.OK
    _install(site, "CuPy_CUDA13x", "14.2.0")
    assert _rows(replace(CUDA, torch_cuda="12.8"))["CuPy"].state is State.WARNING


def test_versions_out_of_bounds_fail(site: Path) -> None:
    assert _rows(CPU)["protobuf"].state is State.OK
    _install(site, "protobuf", "8.0.0")
    row = _rows(CPU)["protobuf"]
    assert (row.state, "8.0.0" in row.found, "'protobuf<8" in row.cure) == (
        State.FAILED,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("version", "spec", "fits"),
    [
        ("6.33.6", ">=6.31.1,<8", True),
        ("6.31.1", "<8,>=6.31.1", True),
        ("6.31", ">=6.31.1", False),
        ("8.0", "<8", False),
        ("8", "<=8.0", True),
        ("1.74.0", "==1.74", True),
        ("1.75.0rc1", "!=1.75", False),
        ("10.1", ">9.9", True),
    ],
)
def test_bounds_compare_numbers(version: str, spec: str, fits: bool) -> None:
    assert within(version, spec) is fits
