"""Releases that are not the same talk to each other, or say in one line why they do not."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from foremoe.client import ControllerClient, RankClient, RankRegistration
from foremoe.errors import VersionError
from foremoe.rpc import channel as channels
from foremoe.rpc.registration import decode_registration
from foremoe.runtime.follower import SERVICES
from foremoe.vocabulary import DegradedReason, Stage
from tests.rpc.schema import current_schema
from tests.rpc.test_wire import golden
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.test_tokens import call_empty

NEW_FIELDS = b"\xc0\xbb\x01\x2a" + b"\xca\xbb\x01\x03new"  # which nobody has yet
FIRST_NEW = {
    "RegisterRankRequest": 8,
    "MicroStepReport": 8,
    "GetStatusResponse": 9,
    "EpGroupStatus": 6,
    "StageStatus": 9,
    "StreamPlansResponse": 10,
}
MICRO_STEPS = 3


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as process:
        yield process


class OlderClient:
    """Speaks a schema without the fields that came later, over a channel that names no version."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._pool = DescriptorPool()
        for file in _older_schema().file:
            self._pool.Add(file)  # type: ignore[no-untyped-call]

    def message(self, name: str, **values: Any) -> Any:
        kind = GetMessageClass(self._pool.FindMessageTypeByName(f"foremoe.rpc.v1.{name}"))
        return kind(**values)

    def call(self, kind: str, service: str, method: str, request: Any, answer: str) -> Any:
        """kind: ``unary_unary`` and the like, as the channel names them."""
        return getattr(self._channel, kind)(
            f"/foremoe.rpc.v1.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=type(self.message(answer)).FromString,
        )(request, timeout=30)


def _older_schema() -> FileDescriptorSet:
    schema = current_schema()
    for file in schema.file:
        for message in file.message_type:
            first = FIRST_NEW.get(message.name, 1 << 29)
            kept = [field for field in message.field if field.number < first]
            del message.field[:]
            message.field.extend(kept)
            if "StageStatus" in message.name:
                del message.nested_type[:]
    return schema


def test_an_older_client_runs_a_step_with_todays_daemon(daemon: DaemonProcess) -> None:
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        older = OlderClient(channel)
        group = {"ranks": 2, "ranks_per_node": 2, "spare_slots": 1, "num_experts": 4}
        for rank in range(2):
            request = older.message(
                "RegisterRankRequest", ep_group="older", rank=rank, layers=[1, 4], **group
            )
            assert not hasattr(request, "moves_homes")
            answer = ("RankService", "RegisterRank", request, "RegisterRankResponse")
            assert older.call("unary_unary", *answer).daemon_id
        names = ("upload_header", "upload_histogram", "upload_expert_ids", "upload_commit")
        upload = [golden(name) for name in names]
        answer = ("ForesightService", "UploadForesight", iter(upload), "UploadForesightResponse")
        assert older.call("stream_unary", *answer).sequences_added == 2
        ids = [upload[1].chunk.sequence_id, upload[2].chunk.sequence_id]
        micro_steps = [
            {"ranks": [{"sequence_ids": ids[:1]}, {"sequence_ids": ids[1:]}]}
            for _ in range(MICRO_STEPS)
        ]
        request = older.message(
            "SubmitScheduleRequest", ep_group="older", step=7, stage=2, micro_steps=micro_steps
        )
        answer = ("ScheduleService", "SubmitSchedule", request, "SubmitScheduleResponse")
        assert older.call("unary_unary", *answer).micro_steps == MICRO_STEPS
        for rank in range(2):
            request = older.message("StreamPlansRequest", ep_group="older", rank=rank)
            plans = older.call(
                "unary_stream", "RankService", "StreamPlans", request, "StreamPlansResponse"
            )
            assert [next(plans).micro_step for _ in range(MICRO_STEPS)] == list(range(MICRO_STEPS))
            plans.cancel()
            report = golden("report_request")
            report.ep_group, report.rank, report.stage = "older", rank, 2
            request = older.message("ReportStageRequest").FromString(report.SerializeToString())
            request.DiscardUnknownFields()
            answer = ("RankService", "ReportStage", request, "ReportStageResponse")
            older.call("unary_unary", *answer)
        request = older.message("GetStatusRequest")
        answer = ("StatusService", "GetStatus", request, "GetStatusResponse")
        (step,) = older.call("unary_unary", *answer).steps
        assert (step.step, step.stages[0].planned, step.stages[0].degraded) == (7, MICRO_STEPS, 1)


def newer_options(versions: str) -> tuple[tuple[str, Any], ...]:
    agent = ("grpc.primary_user_agent", f"foremoe/9.0.0 foremoe-protocol/{versions}")
    return (*(option for option in channels._OPTIONS if option[0] != agent[0]), agent)


def test_a_newer_client_is_understood_if_it_still_speaks_this_protocol(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_OPTIONS", newer_options("1-9"))
    with ControllerClient(daemon.address) as controller:
        assert controller.status().pid == daemon.process.pid
    with channels.open_channel(channels_address(daemon)) as channel:
        call = channel.unary_unary("/foremoe.rpc.v1.RankService/RegisterRank")
        request = golden("register_request")
        request.ep_group = "newer"
        assert call(request.SerializeToString() + NEW_FIELDS, timeout=30)


def test_a_newer_client_of_another_protocol_is_told_so_by_every_method(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_OPTIONS", newer_options("8-9"))
    words = "ForeMoE .* with protocol 1, the caller has protocol 8 to 9; install releases"
    with channels.open_channel(channels_address(daemon)) as channel:
        for service in SERVICES:
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                with pytest.raises(grpc.RpcError, match=words) as refusal:
                    call_empty(channel, path, method)
                assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with (
        ControllerClient(daemon.address) as controller,
        pytest.raises(VersionError, match=words),
    ):
        controller.status()
    with RankClient(daemon.address, RankRegistration("g", 0, 1, 1, 0, 4, (0,))) as rank:
        assert not rank.connected  # and training goes on
        assert rank.missing_reason is DegradedReason.OTHER_VERSION


def channels_address(daemon: DaemonProcess) -> Any:
    return channels.UnixAddress(daemon.address)


class NewerDaemon(grpc.GenericRpcHandler):
    """Answers with golden messages that say more than anybody here knows."""

    def __init__(self, methods: dict[str, list[bytes]], ending: threading.Event) -> None:
        self._methods = methods
        self._ending = ending

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        answers = self._methods.get(name)
        if answers is None:
            return None
        if name != "StreamPlans":
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answers[0])

        def stream(_request: bytes, _context: Any) -> Iterator[bytes]:
            yield from answers
            self._ending.wait()

        return grpc.unary_stream_rpc_method_handler(stream)


@contextmanager
def serving(folder: Path, methods: dict[str, list[bytes]]) -> Iterator[str]:
    """The address of a daemon of another release in this process."""
    ending = threading.Event()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[NewerDaemon(methods, ending)])
    server.add_insecure_port(f"unix:{folder / 's'}")
    server.start()
    try:
        yield str(folder / "s")
    finally:
        ending.set()
        server.stop(None).wait()


def test_todays_clients_understand_a_newer_daemon(tmp_path: Path) -> None:
    methods = {
        method: [golden(name).SerializeToString() + NEW_FIELDS]
        for method, name in (
            ("RegisterRank", "register_response"),
            ("StreamPlans", "plan"),
            ("GetStatus", "status_response"),
            ("SubmitSchedule", "submit_response"),
        )
    }
    registration = decode_registration(golden("register_request"))
    with serving(tmp_path, methods) as address:
        with RankClient(address, registration) as rank:
            eventually(lambda: rank.wait(7, Stage.UPDATE, 1, 0.0) is not None)
            assert rank.corrupt_plans == 0
        with ControllerClient(address) as controller:
            assert controller.status().steps[0].stages[0].planned == 5


def test_what_todays_clients_cannot_read_is_one_line(tmp_path: Path) -> None:
    status = golden("status_response")
    status.steps[0].state = 99
    with (
        serving(tmp_path, {"GetStatus": [status.SerializeToString()]}) as address,
        ControllerClient(address) as controller,
    ):
        with pytest.raises(VersionError, match="step state 99 is not known here"):
            controller.status()
        with pytest.raises(VersionError, match="it does not know this call"):
            controller.release_step(7)  # a method that the other release has not
