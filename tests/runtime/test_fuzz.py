"""Bytes that are no messages, or odd ones, and files that are none, never harm anybody.

A few thousand cases; ``python -m benchmarks.fuzz`` runs any number of the same.
"""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from benchmarks.fuzz import grown
from foremoe.client import (
    ControllerClient,
    MicroStepReport,
    MicroStepSchedule,
    RankClient,
    RankRegistration,
)
from foremoe.errors import ExhaustedError
from foremoe.rpc.foresight import UploadHeader
from foremoe.rpc.v1.foresight_pb2 import ForesightCommit
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.coordinator import Coordinator
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.fuzz_calls import Case, cases
from tests.runtime.fuzz_daemon import FuzzedDaemon
from tests.runtime.fuzz_files import FuzzedFiles
from tests.runtime.fuzz_oracle import complaint
from tests.runtime.uploads import EXPERTS, LAYERS, TOP_K, histogram

CALLS, FILES = 1200, 1500


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedDaemon]:
    with FuzzedDaemon(tmp_path_factory.mktemp("fuzzed")) as daemon:
        yield daemon


def test_every_broken_call_gets_its_status_and_changes_nothing(fuzzed: FuzzedDaemon) -> None:
    draw, chance = cases(seed=1), random.Random(0)
    for number in range(CALLS):
        fuzzed.run(draw())
        if number % 200 == 0:
            fuzzed.send_garbage(chance)
    fuzzed.end_round()
    fuzzed.finish()
    assert fuzzed.failures == []
    assert grown(fuzzed.memory, fuzzed.descriptors) == []
    answers = {answer for _, answer in fuzzed.counts}
    assert answers >= {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
    }


def test_the_oracle_notices_wrong_answers() -> None:
    """It would say so, were the daemon to answer like this."""
    release = Case("/foremoe.rpc.v1.ScheduleService/ReleaseStep", (b"\xff\xff",))
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    fine = "the request is not a valid message: Error parsing message"
    assert complaint(release, invalid, fine) is None
    assert complaint(release, grpc.StatusCode.OK, "") is not None
    assert complaint(release, grpc.StatusCode.INTERNAL, "internal error 1") is not None
    assert complaint(release, invalid, "") is not None
    assert complaint(release, invalid, f"{fine}\nTraceback") is not None
    assert complaint(release, invalid, f"{fine} at /tmp/x.py") is not None
    assert complaint(release, invalid, "no") is not None


def test_every_broken_file_is_refused_in_one_line(tmp_path: Path) -> None:
    files, chance = FuzzedFiles(tmp_path, runs=False), random.Random(0)
    for _ in range(FILES):
        files.run(chance)
    assert files.failures == []
    assert {"read", "InvalidInputError"} == {answer for _, answer in files.counts}


def test_metadata_above_the_limit_is_refused(daemon: DaemonProcess) -> None:
    with daemon.open_channel() as channel:
        call = channel.unary_unary("/foremoe.rpc.v1.StatusService/GetStatus")
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"", metadata=(("k", "v" * 20000),), timeout=10)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call(b"", timeout=10)


def test_a_schedule_that_never_fits_is_refused_before_memory_is_taken() -> None:
    config = RuntimeConfig("nowhere", memory_limit_bytes=64 << 20)
    coordinator = Coordinator(config, lambda _: None, lambda: None)
    ranks = 4096
    group = RankRegistration("huge", 0, ranks, ranks, 1, ranks, tuple(range(4096)))
    coordinator.register(group)
    upload = coordinator.open_upload(UploadHeader(1, LAYERS, EXPERTS, TOP_K))
    coordinator.commit_upload(upload, ForesightCommit())
    schedule = [MicroStepSchedule(0, [()] * ranks)] * 4
    tracemalloc.start()
    try:
        with pytest.raises(ExhaustedError, match="memory limit"):
            coordinator.submit_schedule("huge", 1, Stage.UPDATE, schedule)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert coordinator.budget.used == 0


def test_absurd_counts_in_reports_leave_the_status_readable(daemon: DaemonProcess) -> None:
    group = RankRegistration("counts", 0, 1, 1, 1, EXPERTS, LAYERS)
    most = 2**64 - 1
    with ControllerClient(daemon.address) as client, RankClient(daemon.address, group) as rank:
        with client.foresight_stream(2, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", histogram=histogram(2, 0, 0, 0))
        client.submit_schedule("counts", 2, Stage.UPDATE, [MicroStepSchedule(0, [["a"]])] * 3)
        zero = np.zeros(len(LAYERS))
        rank.report(
            2,
            Stage.UPDATE,
            [
                MicroStepReport(m, "", zero.astype(np.int64), zero, most, most, most, most, most)
                for m in range(3)
            ],
        )
        eventually(
            lambda: [s.reported for step in client.status().steps for s in step.stages] == [3]
        )
        stage = client.status().steps[-1].stages[0]
        assert {path.copied_bytes for path in stage.paths} == {most}
