from collections.abc import Iterator
from itertools import count

import pytest

from tests.runtime.daemon_process import DaemonProcess

_steps = count(1)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One daemon for a test module; tests use steps and EP groups of their own."""
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as process:
        yield process


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def either_daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """The same on each event loop."""
    folder = tmp_path_factory.mktemp("daemon")
    with DaemonProcess(folder, "--event-loop", request.param) as process:
        assert request.param in process.log.read_text()
        yield process


@pytest.fixture
def step() -> int:
    """A step number that no other test uses."""
    return next(_steps)
