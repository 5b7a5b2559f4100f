"""Bytes that are no messages, or odd ones, never harm the daemon."""

import random

import grpc
import pytest

from foremoe.client import ControllerClient, MicroStepSchedule, RankRegistration
from foremoe.rpc.registration import encode_registration
from foremoe.rpc.schedule import encode_micro_steps
from foremoe.rpc.v1 import rank_pb2, schedule_pb2, stage_pb2
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.uploads import EXPERTS, LAYERS, histogram, upload

PROPER = {  # what a client must be prepared for; never UNKNOWN or INTERNAL
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
ROUNDS = 150
GROUP = RankRegistration("group", 0, 2, 2, 1, EXPERTS, LAYERS)
UNARY = {
    "RankService/RegisterRank": encode_registration(GROUP),
    "RankService/ReportStage": rank_pb2.ReportStageRequest(
        ep_group="group", step=1, stage=stage_pb2.STAGE_UPDATE
    ),
    "ScheduleService/ProposeSchedule": schedule_pb2.ProposeScheduleRequest(
        ep_group="group",
        step=1,
        token_budget=4096,
        attention=schedule_pb2.AttentionCost(alpha=1.5, beta=0.5),
        mini_batches=[schedule_pb2.MiniBatch(sequence_ids=["a", "b"])],
    ),
    "ScheduleService/SubmitSchedule": schedule_pb2.SubmitScheduleRequest(
        ep_group="group",
        step=1,
        stage=stage_pb2.STAGE_UPDATE,
        micro_steps=encode_micro_steps([MicroStepSchedule(0, [["a"], []])]),
    ),
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    if chance.random() < 0.2:
        del changed[chance.randrange(len(changed)) :]
    return bytes(changed)


def raw(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize("method", UNARY)
def test_mutated_requests_get_a_proper_answer(daemon: DaemonProcess, method: str) -> None:
    chance = random.Random(method)
    right = UNARY[method].SerializeToString()
    with daemon.open_channel() as channel:
        call = channel.unary_unary(
            f"/foremoe.rpc.v1.{method}", request_serializer=raw, response_deserializer=raw
        )
        codes = set()
        for _ in range(ROUNDS):
            try:
                _, answer = call.with_call(mutated(right, chance), timeout=10)
                codes.add(answer.code())
            except grpc.RpcError as error:
                codes.add(error.code())
    assert codes <= PROPER
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert daemon.process.poll() is None


def test_mutated_uploads_get_a_proper_answer_and_leave_no_bytes(daemon: DaemonProcess) -> None:
    chance = random.Random(0)
    messages = upload(1, {"a": histogram(2, 0, 0, 0), "b": histogram(0, 2, 0, 0)})
    right = [message.SerializeToString() for message in messages]
    codes = set()
    with daemon.open_channel() as channel, ControllerClient(daemon.address) as client:
        call = channel.stream_unary(
            "/foremoe.rpc.v1.ForesightService/UploadForesight",
            request_serializer=raw,
            response_deserializer=raw,
        )
        for _ in range(ROUNDS):
            stream = list(right)
            index = chance.randrange(len(stream))
            stream[index] = mutated(stream[index], chance)
            try:
                call(iter(stream), timeout=10)
                codes.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.add(error.code())
        assert codes <= PROPER
        for found in client.status().steps:
            client.release_step(found.step)
        assert client.status().stored_bytes == 0


def test_what_is_no_protobuf_is_called_so(daemon: DaemonProcess) -> None:
    with daemon.open_channel() as channel:
        for method in (*UNARY, "StatusService/GetStatus"):
            call = channel.unary_unary(
                f"/foremoe.rpc.v1.{method}", request_serializer=raw, response_deserializer=raw
            )
            with pytest.raises(grpc.RpcError) as refusal:
                call(b"\xff\xff\xff", timeout=10)
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "not a valid message" in (refusal.value.details() or "")
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=raw, response_deserializer=raw
        )
        with pytest.raises(grpc.RpcError) as refusal:
            check(b"\xff\xff\xff", timeout=10)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_metadata_above_the_limit_is_refused(daemon: DaemonProcess) -> None:
    with daemon.open_channel() as channel:
        call = channel.unary_unary(
            "/foremoe.rpc.v1.StatusService/GetStatus",
            request_serializer=raw,
            response_deserializer=raw,
        )
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"", metadata=(("k", "v" * 20000),), timeout=10)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call(b"", timeout=10)
