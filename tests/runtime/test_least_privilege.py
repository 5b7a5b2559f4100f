"""What deploy/ promises: no capabilities, a file system that is read-only but for two folders."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from foremoe.client import ControllerClient
from foremoe.errors import UnavailableError
from tests.runtime.daemon_process import DaemonProcess

ROOT = Path(__file__).parents[2]
# $1 is what stays writable, $2 the repository; the rest is run.
_READ_ONLY = """
set -e
mount --make-rprivate /
for folder in / "$2" "$1"; do mount --bind "$folder" "$folder"; done
for folder in / "$2"; do mount -o remount,bind,ro "$folder"; done
mount -o remount,bind,rw "$1"
cd "$1"
shift 2
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")),
    reason="needs root, unshare and setpriv",
)
def test_read_only_and_without_capabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower, which does not compile kernels: it loads all that a leader loads, though."""
    tmp_path.chmod(0o700)
    inside = ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", str(tmp_path), str(ROOT)]
    probe = subprocess.run([*inside, "touch", str(ROOT / "x")], capture_output=True, text=True)
    if "Read-only" not in probe.stderr:
        pytest.skip(f"cannot make a read-only file system here: {probe.stderr.strip()}")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", "/nonexistent")
    with DaemonProcess(tmp_path, "--join", "127.0.0.1:1", prefix=inside) as daemon:
        with (
            ControllerClient(daemon.address) as client,
            pytest.raises(UnavailableError, match="the leader does not answer"),
        ):
            client.status()
        assert daemon.terminate() == 0
    assert not Path(daemon.address).exists()
