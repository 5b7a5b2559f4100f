"""Uploads whose daemon is killed in the middle: sent again whole, or an error in time."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import foremoe.client.foresight_stream as foresight_stream
from foremoe.client import AsyncControllerClient, ControllerClient
from foremoe.client.async_foresight_stream import AsyncForesightStream
from foremoe.crash_points import VARIABLE, CrashPoint
from foremoe.errors import UnavailableError
from foremoe.vocabulary import Stage
from tests.client.test_controller import EXPERTS, LAYERS, TOP_K, routing, sequences
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually

STEP = 1
MODEL = (STEP, LAYERS, EXPERTS, TOP_K)
SEQUENCES = 300  # more than wait in the outbox
MIDDLE = 150
NOBODY = r"no runtime answers at .*; start one with: foremoe serve"

Between = Callable[[int], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def daemons() -> Iterator[ExitStack]:
    """Ends what is entered."""
    with ExitStack() as stack:
        yield stack


def foresight() -> Iterator[tuple[int, str, NDArray[np.uint8]]]:
    """Sequences told apart by their content."""
    for index in range(SEQUENCES):
        yield index, f"s{index}", routing(1 + index % 7, seed=index)


def upload(address: str, between: Between, timeout_seconds: float = 10.0) -> tuple[int, int]:
    """Sequences added and known; ``between`` is called before each of them."""
    with ControllerClient(address, timeout_seconds, retry_seconds=60) as client:
        with client.foresight_stream(*MODEL, send_ids=True) as stream:
            for index, name, ids in foresight():
                between(index)
                stream.add(name, expert_ids=ids)
        return stream.sequences_added, stream.sequences_known


def upload_async(address: str, between: Between) -> tuple[int, int]:
    """The same from an event loop."""

    async def send() -> tuple[int, int]:
        async with AsyncControllerClient(address, retry_seconds=60) as client:
            async with client.foresight_stream(*MODEL, send_ids=True) as stream:
                for index, name, ids in foresight():
                    between(index)
                    await stream.add(name, expert_ids=ids)
            return stream.sequences_added, stream.sequences_known

    return asyncio.run(send())


def holds_exactly_the_upload(address: str) -> None:
    """Each sequence is known with its own content, there is no other, and nothing is staged."""
    assert upload(address, lambda _: None) == (0, SEQUENCES)
    with ControllerClient(address) as client:
        assert sequences(client, STEP) == SEQUENCES
        client.release_step(STEP)
        eventually(lambda: client.status().stored_bytes == 0)


def at_the_middle(act: Callable[[], Any]) -> Between:
    return lambda index: act() if index == MIDDLE else None


def kill_with_a_part_staged(daemon: DaemonProcess) -> None:
    with ControllerClient(daemon.address) as client:
        eventually(lambda: client.status().stored_bytes > 0)
    daemon.kill()


def test_uploads_outlive_their_daemons(
    folder: Path, daemons: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both clients at once, the same sequences. One daemon is killed with a part of them, one as
    it has taken the first upload in: the third one has all, once.
    """
    first = daemons.enter_context(DaemonProcess(folder))
    middle = threading.Barrier(2)
    third: Future[DaemonProcess] = Future()

    def restart() -> None:
        kill_with_a_part_staged(first)
        monkeypatch.setenv(VARIABLE, CrashPoint.COMMITTED)
        second = DaemonProcess(folder)
        daemons.callback(second.kill)
        monkeypatch.delenv(VARIABLE)
        assert second.process.wait(timeout=60) == -signal.SIGKILL
        third.set_result(DaemonProcess(folder))
        daemons.callback(third.result().kill)

    restarting = threading.Thread(target=restart)
    daemons.callback(restarting.join)
    meet = at_the_middle(lambda: restarting.start() if middle.wait() == 0 else None)
    with ThreadPoolExecutor() as pool:
        sending = [pool.submit(send, first.address, meet) for send in (upload, upload_async)]
        counts = [each.result() for each in sending]
    assert [sum(count) for count in counts] == [SEQUENCES] * 2
    assert sum(added for added, _ in counts) == SEQUENCES
    daemon = third.result().wait_serving()
    holds_exactly_the_upload(daemon.address)

    def freeze() -> None:
        daemon.process.send_signal(signal.SIGSTOP)
        thaw = threading.Timer(0.5, daemon.process.send_signal, (signal.SIGCONT,))
        thaw.start()
        daemons.callback(thaw.join)

    added, known = upload(daemon.address, at_the_middle(freeze), timeout_seconds=0.3)
    assert added + known == SEQUENCES  # an attempt that was given up may have been taken in
    holds_exactly_the_upload(daemon.address)


class Lost:
    """An upload that has begun when its daemon dies, and goes on then."""

    def __init__(self, stream: AsyncForesightStream) -> None:
        self._begun, self._dead = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._send(stream))

    async def begun(self) -> None:
        await self._begun.wait()

    def go_on(self) -> asyncio.Task[None]:
        self._dead.set()
        return self._task

    async def _send(self, stream: AsyncForesightStream) -> None:
        async with stream:
            await stream.add("first", expert_ids=routing(2))
            self._begun.set()
            await self._dead.wait()
            for _, name, ids in foresight():
                await stream.add(name, expert_ids=ids)


def test_a_daemon_that_stays_dead_is_an_error_in_time(
    folder: Path, daemons: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a cancelled task, and an upload too large to be repeated, do not wait for it."""
    daemon = daemons.enter_context(DaemonProcess(folder))

    async def lose() -> None:
        async with (
            AsyncControllerClient(daemon.address, retry_seconds=0.5) as client,
            AsyncControllerClient(daemon.address, retry_seconds=1e6) as patient,
        ):
            lost = Lost(client.foresight_stream(*MODEL))
            waiting = Lost(patient.foresight_stream(*MODEL))
            monkeypatch.setattr(foresight_stream, "REPEATABLE_BYTES", 100)
            large = Lost(patient.foresight_stream(*MODEL))
            for one in (lost, waiting, large):
                await one.begun()
            kill_with_a_part_staged(daemon)
            still_waiting = waiting.go_on()
            began = time.monotonic()
            with pytest.raises(UnavailableError, match=NOBODY):
                await lost.go_on()
            assert 0.5 <= time.monotonic() - began < 10
            with pytest.raises(UnavailableError, match="the most that is kept to be sent again"):
                await large.go_on()
            assert not still_waiting.done()
            still_waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await still_waiting

    asyncio.run(asyncio.wait_for(lose(), 30))
    with ControllerClient(daemon.address, retry_seconds=0.5) as client:
        began = time.monotonic()
        with (
            pytest.raises(UnavailableError, match=NOBODY),
            client.foresight_stream(*MODEL) as stream,
        ):
            stream.add("first", expert_ids=routing(2))
        assert 0.5 <= time.monotonic() - began < 10
    with ControllerClient(daemon.address, retry_seconds=1e6) as client:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=NOBODY):
            client.wait_planned("ep0", STEP, Stage.UPDATE, 0.5)
        assert 0.5 <= time.monotonic() - began < 10
