from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.daemon_process import DaemonProcess


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One daemon for a test module; tests use steps and EP groups of their own."""
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as process:
        yield process


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """A socket path with no daemon."""
    return str(tmp_path / "s")
