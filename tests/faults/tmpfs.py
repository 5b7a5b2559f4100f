"""A small tmpfs that only this process and its children see."""

import ctypes
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_BLOCK = bytes(1 << 12)
FILLER = "full"


@contextmanager
def small_tmpfs(folder: Path, size: str) -> Iterator[Path | None]:
    """Mounted below ``folder``, 4m large say, until the end; None where we may not."""
    caches = folder / "caches"
    caches.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(caches)]
    commands = (["mount", "--make-rprivate", "/"], mount)
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) or any(map(_fails, commands)):
        yield None
        return
    try:
        yield caches
    finally:
        subprocess.run(["umount", "--lazy", str(caches)], check=True)


@contextmanager
def some_tmpfs() -> Iterator[Path]:
    """A folder on the machine's own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def fill(folder: Path) -> None:
    """Leave no room in the tmpfs."""
    with suppress(OSError), (folder / FILLER).open("ab", buffering=0) as filler:
        while True:
            filler.write(_BLOCK)


def _fails(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode != 0
