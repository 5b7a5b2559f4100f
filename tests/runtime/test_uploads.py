"""Uploads over a real socket: whole or not at all, whatever happens to the sender."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import pytest

from foremoe.client import ControllerClient
from foremoe.rpc.status import RuntimeStatus
from foremoe.rpc.v1.foresight_pb2 import UploadForesightRequest, UploadForesightResponse
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.uploads import chunk, commit, header, histogram, upload

ONE, OTHER = histogram(2, 0, 0, 0), histogram(0, 2, 0, 0)


def send(daemon: DaemonProcess, messages: list[UploadForesightRequest]) -> UploadForesightResponse:
    with daemon.open_channel() as channel:
        response: UploadForesightResponse = ForesightServiceStub(channel).UploadForesight(
            iter(messages), timeout=10
        )
    return response


def status(daemon: DaemonProcess) -> RuntimeStatus:
    with ControllerClient(daemon.address) as client:
        return client.status()


def held(daemon: DaemonProcess, step: int) -> int | None:
    """Sequences of the step, None when the daemon does not know it."""
    sequences = {found.step: found.sequences for found in status(daemon).steps}
    return sequences.get(step)


def test_whole_upload_is_kept(either_daemon: DaemonProcess, step: int) -> None:
    answer = send(either_daemon, upload(step, {"a": ONE, "b": OTHER}))
    assert (answer.sequences_added, answer.sequences_known) == (2, 0)
    assert held(either_daemon, step) == 2


def test_same_upload_again_changes_nothing(either_daemon: DaemonProcess, step: int) -> None:
    send(either_daemon, upload(step, {"a": ONE, "b": OTHER}))
    answer = send(either_daemon, upload(step, {"b": OTHER, "c": ONE}))
    assert (answer.sequences_added, answer.sequences_known) == (1, 1)
    before = status(either_daemon)
    answer = send(either_daemon, upload(step, {"a": ONE, "b": OTHER, "c": ONE}))
    assert (answer.sequences_added, answer.sequences_known) == (0, 3)
    after = status(either_daemon)
    assert (after.steps, after.stored_bytes) == (before.steps, before.stored_bytes)


def test_other_content_refuses_the_whole_upload(either_daemon: DaemonProcess, step: int) -> None:
    send(either_daemon, upload(step, {"a": ONE}))
    before = status(either_daemon)
    with pytest.raises(grpc.RpcError) as refusal:
        send(either_daemon, upload(step, {"new": ONE, "a": OTHER}))
    assert refusal.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "'a'" in (refusal.value.details() or "")
    after = status(either_daemon)
    assert (after.steps, after.stored_bytes) == (before.steps, before.stored_bytes)


def test_pieces_of_a_sequence_add_up(either_daemon: DaemonProcess, step: int) -> None:
    pieces = [chunk("a", ONE), chunk("a", OTHER)]
    send(either_daemon, [header(step), *pieces, commit(pieces)])
    answer = send(either_daemon, upload(step, {"a": histogram(2, 2, 0, 0)}))
    assert answer.sequences_known == 1


def unfinished(step: int, never: threading.Event) -> Iterator[UploadForesightRequest]:
    """An upload that stops before its commit and keeps the stream open."""
    yield header(step)
    for index in range(20):
        yield chunk(f"s{index}", ONE)
    never.wait()


def staged(daemon: DaemonProcess, before: int) -> None:
    """Return when the daemon has taken in more than ``before`` bytes."""
    with ControllerClient(daemon.address) as client:
        eventually(lambda: client.status().stored_bytes > before)


def unstaged(daemon: DaemonProcess, before: int) -> None:
    """Return when the daemon holds ``before`` bytes again, as it must within the test's time."""
    with ControllerClient(daemon.address) as client:
        eventually(lambda: client.status().stored_bytes == before)


def test_cancelled_upload_changes_nothing(either_daemon: DaemonProcess, step: int) -> None:
    before, never = status(either_daemon).stored_bytes, threading.Event()
    with either_daemon.open_channel() as channel:
        call = ForesightServiceStub(channel).UploadForesight.future(unfinished(step, never))
        staged(either_daemon, before)
        call.cancel()
        unstaged(either_daemon, before)
        never.set()
    assert held(either_daemon, step) is None


def test_upload_past_its_deadline_changes_nothing(either_daemon: DaemonProcess, step: int) -> None:
    before, never = status(either_daemon).stored_bytes, threading.Event()
    with either_daemon.open_channel() as channel:
        call = ForesightServiceStub(channel).UploadForesight.future(
            unfinished(step, never), timeout=0.3
        )
        assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
        never.set()
    unstaged(either_daemon, before)
    assert held(either_daemon, step) is None


UPLOADER = """
import sys, threading
import grpc
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub
from tests.runtime.test_uploads import unfinished
channel = grpc.insecure_channel("unix:" + sys.argv[1])
ForesightServiceStub(channel).UploadForesight(unfinished(int(sys.argv[2]), threading.Event()))
"""


def test_upload_of_a_killed_process_changes_nothing(
    either_daemon: DaemonProcess, step: int, request: pytest.FixtureRequest
) -> None:
    before = status(either_daemon).stored_bytes
    uploader = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, either_daemon.address, str(step)],
        cwd=request.config.rootpath,
    )
    try:
        staged(either_daemon, before)
    finally:
        uploader.kill()
        uploader.wait()
    unstaged(either_daemon, before)
    assert held(either_daemon, step) is None


def test_stream_that_ends_without_commit_changes_nothing(
    either_daemon: DaemonProcess, step: int
) -> None:
    before = status(either_daemon)
    with pytest.raises(grpc.RpcError) as refusal:
        send(either_daemon, upload(step, {"a": ONE})[:-1])
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "without a commit" in (refusal.value.details() or "")
    assert status(either_daemon).stored_bytes == before.stored_bytes
    assert held(either_daemon, step) is None
