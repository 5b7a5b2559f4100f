"""What deploy/ promises: no root, no capabilities, read-only but for the folders it is given."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from foremoe.client import ControllerClient
from foremoe.errors import UnavailableError
from tests.runtime.daemon_process import DaemonProcess

ROOT = Path(__file__).parents[2]
NOBODY = 65534
# $1 is what stays writable, $2 the repository, $3 the user; the rest is run.
_READ_ONLY = """
set -e
mount --make-rprivate /
for folder in / "$2" "$1"; do mount --bind "$folder" "$folder"; done
for folder in / "$2"; do mount -o remount,bind,ro "$folder"; done
mount -o remount,bind,rw "$1"
cd "$1"
user=$3
shift 3
exec setpriv --reuid="$user" --regid="$user" --clear-groups \
    --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private one of nobody's, which nobody can reach."""
    with tempfile.TemporaryDirectory(prefix="foremoe-") as path:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        yield Path(path)


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")),
    reason="needs root, unshare and setpriv",
)
def test_as_nobody_read_only_and_without_capabilities(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower, which does not compile kernels: it loads all that a leader loads, though."""
    inside = ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", str(folder), str(ROOT)]
    as_root = subprocess.run(
        [*inside, "0", "touch", str(ROOT / "x")], capture_output=True, text=True
    )
    if "Read-only" not in as_root.stderr:
        pytest.skip(f"cannot make a read-only file system here: {as_root.stderr.strip()}")
    inside.append(str(NOBODY))
    look = [*inside, sys.executable, "-c", "import os, foremoe.errors; print(os.getuid())"]
    probe = subprocess.run(look, capture_output=True, text=True)
    if probe.stdout != f"{NOBODY}\n":
        pytest.skip(f"another user cannot run this Python: {probe.stderr.strip()[-200:]}")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("HOME", "/nonexistent")
    with DaemonProcess(folder, "--join", "127.0.0.1:1", prefix=inside) as daemon:
        with (
            ControllerClient(daemon.address) as client,
            pytest.raises(UnavailableError, match="the leader does not answer"),
        ):
            client.status()
        assert daemon.terminate() == 0
    assert not Path(daemon.address).exists()
