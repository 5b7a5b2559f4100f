"""The memory limit over a real socket: refused with a clear error, freed by release."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from foremoe.client import (
    ControllerClient,
    MicroStepReport,
    MicroStepSchedule,
    RankClient,
    RankRegistration,
)
from foremoe.errors import ExhaustedError
from foremoe.rpc.arrays import encode_array
from foremoe.rpc.v1.foresight_pb2 import ForesightChunk, UploadForesightRequest
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.uploads import EXPERTS, LAYERS, TOP_K, header, histogram

LIMIT = 256 << 10
GROUP = RankRegistration("group", 0, 1, 1, 1, EXPERTS, LAYERS)
ONE = histogram(2, 0, 0, 0)


@pytest.fixture
def small_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    with DaemonProcess(folder, "--memory-limit", "256K", "--max-steps", "3") as process:
        yield process


def fill(client: ControllerClient, step: int, sequences: int) -> None:
    with client.foresight_stream(step, LAYERS, EXPERTS, TOP_K) as stream:
        for index in range(sequences):
            stream.add(f"s{index}", histogram=ONE)


def run_update(client: ControllerClient, rank: RankClient, step: int) -> None:
    client.submit_schedule("group", step, Stage.UPDATE, [MicroStepSchedule(0, [["s0"]])])
    assert rank.wait(step, Stage.UPDATE, 0, 10.0) is not None
    rank.report(step, Stage.UPDATE, [MicroStepReport(0, "", np.zeros(2, np.int64), np.zeros(2))])
    eventually(
        lambda: (step, "executing") in {(held.step, held.state) for held in client.status().steps}
    )


def test_upload_above_the_limit_is_refused_whole(small_daemon: DaemonProcess) -> None:
    with ControllerClient(small_daemon.address) as client:
        fill(client, 1, 100)
        before = client.status()
        with pytest.raises(ExhaustedError, match="release steps that are done"):
            fill(client, 2, 200)
        after = client.status()
        assert [(found.step, found.sequences) for found in after.steps] == [(1, 100)]
        assert after.stored_bytes == before.stored_bytes <= LIMIT
        client.release_step(1)
        assert client.status().stored_bytes == 0
        fill(client, 2, 200)


def test_finished_steps_are_released_to_make_room(small_daemon: DaemonProcess) -> None:
    with (
        ControllerClient(small_daemon.address) as client,
        RankClient(small_daemon.address, GROUP) as rank,
    ):
        fill(client, 1, 100)
        run_update(client, rank, 1)
        fill(client, 2, 200)
        assert [found.step for found in client.status().steps] == [2]


def test_schedule_whose_plans_do_not_fit_is_refused(small_daemon: DaemonProcess) -> None:
    with (
        ControllerClient(small_daemon.address) as client,
        RankClient(small_daemon.address, GROUP),
    ):
        fill(client, 1, 1)
        before = client.status()
        with pytest.raises(ExhaustedError, match="memory limit"):
            client.submit_schedule(
                "group", 1, Stage.UPDATE, [MicroStepSchedule(0, [["s0"]])] * 1000
            )
        after = client.status()
        assert (after.steps, after.stored_bytes) == (before.steps, before.stored_bytes)


def test_more_steps_than_allowed_are_refused_until_one_is_finished(
    small_daemon: DaemonProcess,
) -> None:
    with (
        ControllerClient(small_daemon.address) as client,
        RankClient(small_daemon.address, GROUP) as rank,
    ):
        for step in (1, 2, 3):
            fill(client, step, 1)
        with pytest.raises(ExhaustedError, match="3 steps are held, the oldest is 1"):
            fill(client, 4, 1)
        run_update(client, rank, 2)  # nobody will come back to step 1 either
        fill(client, 4, 1)
        fill(client, 5, 1)
        assert [found.step for found in client.status().steps] == [3, 4, 5]


def test_refused_uploads_give_their_memory_back_at_once(small_daemon: DaemonProcess) -> None:
    """Not only in the daemon's books: nothing may keep them until the garbage collector comes."""
    layers, experts = tuple(range(8)), 512
    counts = np.full((len(layers), experts), TOP_K, np.uint32)

    def send(client: ControllerClient) -> None:  # 224 KiB, and then more than there is
        with client.foresight_stream(1, layers, experts, TOP_K) as stream:
            for index in range(16):
                stream.add(f"s{index}", histogram=counts)

    def refuse() -> None:
        with ControllerClient(small_daemon.address) as client, pytest.raises(ExhaustedError):
            send(client)

    for _ in range(10):
        refuse()
    before = resident_bytes(small_daemon)
    for _ in range(60):  # 13 MiB in all
        refuse()
    assert resident_bytes(small_daemon) < before + (4 << 20)


def test_open_uploads_hold_their_counts_and_no_messages(small_daemon: DaemonProcess) -> None:
    """Rollouts keep uploads open for hours; each has sent 1 MiB of ids here."""
    ids = encode_array(np.zeros((250_000, 2, 2), np.uint8))
    long = UploadForesightRequest(
        chunk=ForesightChunk(sequence_id="long", tokens=250_000, expert_ids=ids)
    )
    ended = Event()

    def messages() -> Iterator[UploadForesightRequest]:
        yield header(1)
        yield long
        ended.wait()

    with small_daemon.open_channel() as channel, ControllerClient(small_daemon.address) as client:
        before, calls = resident_bytes(small_daemon), []
        for _ in range(32):
            held = client.status().stored_bytes
            calls.append(ForesightServiceStub(channel).UploadForesight.future(messages()))
            eventually(lambda held=held: client.status().stored_bytes > held)  # type: ignore[misc]
        after = resident_bytes(small_daemon)
        ended.set()
    assert after < before + (16 << 20)


def resident_bytes(daemon: DaemonProcess) -> int:
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
