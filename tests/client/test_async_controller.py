"""The asyncio client against a real daemon: the same foresight, refusals and deadlines."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.client import (
    AsyncControllerClient,
    ControllerClient,
    MicroStepSchedule,
    RankClient,
    RankRegistration,
)
from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    InvalidInputError,
    UnavailableError,
    UnknownError,
)
from foremoe.vocabulary import Stage
from tests.client.test_controller import EXPERTS, LAYERS, TOP_K, fill, routing, sequences
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; nothing here should take half a minute."""
    asyncio.run(asyncio.wait_for(coroutine, 30))


async def upload(
    client: AsyncControllerClient, sequences: int, ids: NDArray[np.uint8], *, send_ids: bool = False
) -> None:
    """The same ids again and again as foresight of step 1."""
    async with client.foresight_stream(1, LAYERS, EXPERTS, TOP_K, send_ids=send_ids) as stream:
        for index in range(sequences):
            await stream.add(f"s{index}", expert_ids=ids)


def test_async_and_sync_foresight_are_the_same(daemon: DaemonProcess) -> None:
    ids = routing(200_000)

    async def twice() -> None:
        async with AsyncControllerClient(daemon.address) as client:
            for send_ids in (False, True):
                stream = client.foresight_stream(31, LAYERS, EXPERTS, TOP_K, send_ids=send_ids)
                async with stream:
                    await stream.add("a", expert_ids=ids)
                assert (stream.sequences_added, stream.sequences_known) == (0, 1)

    with ControllerClient(daemon.address) as client:
        with client.foresight_stream(31, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", expert_ids=ids)
        run(twice())


def test_rollouts_upload_at_once_over_one_client(daemon: DaemonProcess) -> None:
    """As an asynchronous rollout does: a stream a worker, sequences as they finish."""

    async def worker(client: AsyncControllerClient, number: int) -> None:
        async with client.foresight_stream(32, LAYERS, EXPERTS, TOP_K) as stream:
            for index in range(50):
                await stream.add(f"w{number}-{index}", expert_ids=routing(5, seed=index))

    async def rollout() -> None:
        async with AsyncControllerClient(daemon.address) as client:
            await asyncio.gather(*(worker(client, number) for number in range(8)))
            (step,) = [held for held in (await client.status()).steps if held.step == 32]
            assert step.sequences == 8 * 50
            await client.release_step(32)
            assert 32 not in {held.step for held in (await client.status()).steps}

    run(rollout())


def test_cancelled_rollout_leaves_nothing_behind(daemon: DaemonProcess) -> None:
    async def rollout(client: AsyncControllerClient, begun: asyncio.Event) -> None:
        async with client.foresight_stream(33, LAYERS, EXPERTS, TOP_K) as stream:
            for index in range(100):
                await stream.add(f"s{index}", expert_ids=routing(5))
            begun.set()
            await asyncio.Event().wait()  # for a rollout that never ends

    async def cancel() -> None:
        async with AsyncControllerClient(daemon.address) as client:
            begun = asyncio.Event()
            task = asyncio.create_task(rollout(client, begun))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.status()).pid == daemon.process.pid  # the client goes on

    with ControllerClient(daemon.address) as client:
        before = client.status().stored_bytes
        run(cancel())
        eventually(lambda: client.status().stored_bytes == before)
        assert sequences(client, 33) is None


def test_stage_is_waited_for_and_progress_told(daemon: DaemonProcess) -> None:
    registration = RankRegistration("awaited", 0, 1, 1, 1, EXPERTS, LAYERS)
    micro_steps = [MicroStepSchedule(0, [[f"s{index}"]]) for index in range(40)]
    told: list[tuple[int, int]] = []

    async def schedule() -> None:
        async with AsyncControllerClient(daemon.address) as client:
            with pytest.raises(UnknownError, match="stage update of step 34 has no schedule"):
                await client.wait_planned("awaited", 34, Stage.UPDATE, 5)
            assert await client.submit_schedule("awaited", 34, Stage.UPDATE, micro_steps) == 40
            await client.wait_planned(
                "awaited", 34, Stage.UPDATE, 20, lambda *counts: told.append(counts)
            )
            with pytest.raises(ConflictError, match="another schedule"):
                await client.submit_schedule("awaited", 34, Stage.UPDATE, micro_steps[:1])

    with ControllerClient(daemon.address) as client, RankClient(daemon.address, registration):
        fill(client, 34, range(40))
        run(schedule())
        client.wait_planned("awaited", 34, Stage.UPDATE, 0)
    assert told[-1] == (40, 40)
    assert told == sorted(set(told))


def test_proposal_is_the_same_as_the_sync_clients(daemon: DaemonProcess) -> None:
    registration = RankRegistration("proposed", 0, 1, 1, 1, EXPERTS, LAYERS)

    async def propose() -> None:
        async with AsyncControllerClient(daemon.address) as asynchronous:
            assert await asynchronous.propose_schedule("proposed", 35, 9) == expected

    with ControllerClient(daemon.address) as client, RankClient(daemon.address, registration):
        fill(client, 35, range(12))
        expected = client.propose_schedule("proposed", 35, 9)
        run(propose())
    assert sum(len(m.ranks[0]) for m in expected.micro_steps) == 12


def test_bad_array_is_refused_and_the_stream_goes_on(daemon: DaemonProcess) -> None:
    async def mixed() -> None:
        async with AsyncControllerClient(daemon.address) as client:
            async with client.foresight_stream(36, LAYERS, EXPERTS, TOP_K) as stream:
                for wrong in ({}, {"expert_ids": routing(2) + 16}):
                    with pytest.raises(InvalidInputError):
                        await stream.add("bad", **wrong)
                await stream.add("good", expert_ids=routing(2))
            assert stream.sequences_added == 1

    run(mixed())


def test_refusal_in_the_middle_of_a_stream_reaches_the_sender(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    async def exhaust(address: str) -> None:
        async with AsyncControllerClient(address) as client:
            with pytest.raises(ExhaustedError, match="memory limit"):
                await upload(client, 100_000, routing(3))
            assert (await client.status()).stored_bytes == 0

    with DaemonProcess(tmp_path, "--memory-limit", "64K") as daemon:
        run(exhaust(daemon.address))


def test_no_daemon_is_one_line_that_says_what_to_do(nowhere: str) -> None:
    expected = f"no runtime answers at unix:{nowhere}; start one with: foremoe serve"

    async def ask() -> None:
        async with AsyncControllerClient(nowhere) as client:
            with pytest.raises(UnavailableError, match=expected):
                await client.status()
            with pytest.raises(UnavailableError, match=expected):
                await upload(client, 1, routing(2))

    run(ask())


def test_frozen_daemon_is_unavailable_after_the_timeout(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    ids = routing(20_000)

    async def meet_silence(daemon: DaemonProcess, sequences: int) -> None:
        async with AsyncControllerClient(daemon.address, timeout_seconds=0.3) as client:
            await client.status()
            daemon.process.send_signal(signal.SIGSTOP)
            with pytest.raises(UnavailableError, match="did not answer in time"):
                await client.status()
            expected = "sending it again is safe" if sequences == 1 else "took nothing for"
            with pytest.raises(UnavailableError, match=expected):
                await upload(client, sequences, ids, send_ids=sequences > 1)
            daemon.process.send_signal(signal.SIGCONT)

    with DaemonProcess(tmp_path) as daemon:
        run(meet_silence(daemon, 1))
        run(meet_silence(daemon, 400))


def test_calls_wait_for_a_daemon_that_restarts(tmp_path: Path) -> None:
    """The calls are made while no daemon is there; the one that starts then answers them."""
    tmp_path.chmod(0o700)

    async def ask(stack: contextlib.ExitStack, first: DaemonProcess) -> None:
        client = stack.enter_context(ControllerClient(first.address, 5.0, retry_seconds=30))
        async with AsyncControllerClient(first.address, 5.0, retry_seconds=30) as asynchronous:
            assert client.status().pid == (await asynchronous.status()).pid == first.process.pid
            first.kill()
            answers = asyncio.gather(asynchronous.status(), asyncio.to_thread(client.status))
            await asyncio.sleep(0)
            second = DaemonProcess(tmp_path)
            stack.callback(second.kill)
            assert [answer.pid for answer in await answers] == [second.process.pid] * 2

    with contextlib.ExitStack() as stack:
        asyncio.run(ask(stack, stack.enter_context(DaemonProcess(tmp_path))))


def test_what_the_daemon_refuses_is_not_asked_again(daemon: DaemonProcess) -> None:
    schedule = ("nobody", 37, Stage.UPDATE, [MicroStepSchedule(0, [["a"]])])

    async def ask() -> None:
        async with AsyncControllerClient(daemon.address, retry_seconds=1e6) as client:
            await client.submit_schedule(*schedule)

    with pytest.raises(UnknownError, match="register its ranks first"):
        run(ask())
    client = ControllerClient(daemon.address, retry_seconds=1e6)
    with client, pytest.raises(UnknownError, match="register its ranks first"):
        client.submit_schedule(*schedule)


def test_the_loop_goes_on_while_ids_are_counted(daemon: DaemonProcess) -> None:
    """Counting runs in a thread without the GIL: other tasks get their turns in between."""
    ids = np.tile(routing(1000), (2000, 1, 1))

    async def count_turns() -> None:
        turns = 0
        async with (
            AsyncControllerClient(daemon.address) as client,
            client.foresight_stream(38, LAYERS, EXPERTS, TOP_K) as stream,
        ):
            adding = asyncio.create_task(stream.add("a", expert_ids=ids))
            while not adding.done():
                await asyncio.sleep(0)
                turns += 1
            await adding
        assert turns > 10

    run(count_turns())
