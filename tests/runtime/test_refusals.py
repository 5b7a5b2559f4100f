"""Every bad input over a real socket: its status code, a message that says where, no change."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from foremoe.client import ControllerClient, MicroStepReport, MicroStepSchedule, RankRegistration
from foremoe.rpc.arrays import encode_array
from foremoe.rpc.registration import encode_registration
from foremoe.rpc.report import encode_report
from foremoe.rpc.schedule import encode_micro_steps
from foremoe.rpc.status import RuntimeStatus, StepState
from foremoe.rpc.v1 import rank_pb2, schedule_pb2, stage_pb2, timeline_pb2
from foremoe.rpc.v1.foresight_pb2 import ForesightChunk, UploadForesightRequest
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceStub
from foremoe.rpc.v1.schedule_pb2_grpc import ScheduleServiceStub
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.uploads import EXPERTS, LAYERS, chunk, commit, header, histogram, upload

STEP = 7
GROUP = RankRegistration("group", 0, 2, 2, 1, EXPERTS, LAYERS)
ONE = histogram(2, 0, 0, 0)
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN = grpc.StatusCode.NOT_FOUND
CONFLICT = grpc.StatusCode.ALREADY_EXISTS
NOT_READY = grpc.StatusCode.FAILED_PRECONDITION

Call = Callable[[grpc.Channel], Any]


@pytest.fixture(scope="module")
def channel(daemon: DaemonProcess) -> Any:
    """A daemon that knows GROUP, STEP with sequence "a", and a recompute schedule."""
    with daemon.open_channel() as channel:
        for rank in range(GROUP.ranks):
            register(replace(GROUP, rank=rank))(channel)
        send(*upload(STEP, {"a": ONE}))(channel)
        schedule([[["a"], []]])(channel)
        eventually(lambda: snapshot(daemon).steps[0].state is StepState.PLANNED)
        yield channel


def snapshot(daemon: DaemonProcess) -> RuntimeStatus:
    with ControllerClient(daemon.address) as client:
        return replace(client.status(), uptime_seconds=0.0)


def send(*messages: UploadForesightRequest) -> Call:
    return lambda channel: ForesightServiceStub(channel).UploadForesight(iter(messages), timeout=10)


def register(registration: RankRegistration) -> Call:
    request = encode_registration(registration)
    return lambda channel: RankServiceStub(channel).RegisterRank(request, timeout=10)


def unchecked(**fields: Any) -> Call:
    """A registration that the client's own checks would not let through."""
    request = encode_registration(GROUP)
    request.MergeFrom(rank_pb2.RegisterRankRequest(**fields))
    return lambda channel: RankServiceStub(channel).RegisterRank(request, timeout=10)


def schedule(
    micro_steps: Sequence[Sequence[Sequence[str]]],
    mini_batches: Sequence[int] | None = None,
    **fields: Any,
) -> Call:
    values = {"ep_group": "group", "step": STEP, "stage": stage_pb2.STAGE_RECOMPUTE, **fields}
    batches = mini_batches or [0] * len(micro_steps)
    request = schedule_pb2.SubmitScheduleRequest(
        **values,
        micro_steps=encode_micro_steps(
            [MicroStepSchedule(*pair) for pair in zip(batches, micro_steps, strict=True)]
        ),
    )
    return lambda channel: ScheduleServiceStub(channel).SubmitSchedule(request, timeout=10)


def propose(*mini_batches: Sequence[str], **fields: Any) -> Call:
    values = {"ep_group": "group", "step": STEP, "token_budget": 8, **fields}
    request = schedule_pb2.ProposeScheduleRequest(
        **values,
        mini_batches=[schedule_pb2.MiniBatch(sequence_ids=names) for names in mini_batches],
    )
    return lambda channel: ScheduleServiceStub(channel).ProposeSchedule(request, timeout=10)


def report(micro_step: int = 0, layers: int = 2, seconds: float = 0.0, **fields: Any) -> Call:
    values = {
        "ep_group": "group",
        "rank": 0,
        "step": STEP,
        "stage": stage_pb2.STAGE_RECOMPUTE,
        **fields,
    }
    one = MicroStepReport(micro_step, "", np.zeros(layers, np.int64), np.full(layers, seconds))
    request = rank_pb2.ReportStageRequest(**values, micro_steps=[encode_report(one)])
    return lambda channel: RankServiceStub(channel).ReportStage(request, timeout=10)


def ran(rows: Any, began_unix_ns: int = 0) -> Call:
    """A report with the spans of a timeline."""
    spans = encode_array(np.array(rows, np.int32))
    return report(timeline=timeline_pb2.Timeline(began_unix_ns=began_unix_ns, spans=spans))


def stream(ep_group: str, rank: int) -> Call:
    request = rank_pb2.StreamPlansRequest(ep_group=ep_group, rank=rank)
    return lambda channel: next(RankServiceStub(channel).StreamPlans(request, timeout=10))


def ids(array: Any, tokens: int = 1, sequence_id: str = "new") -> UploadForesightRequest:
    return UploadForesightRequest(
        chunk=ForesightChunk(
            sequence_id=sequence_id,
            tokens=tokens,
            expert_ids=encode_array(np.array(array, np.int32)),
        )
    )


def bent(**fields: Any) -> UploadForesightRequest:
    """A right chunk with the fields of its histogram replaced."""
    message = chunk("new", ONE)
    for name, value in fields.items():
        if name == "shape":
            message.chunk.histogram.shape[:] = value
        else:
            setattr(message.chunk.histogram, name, value)
    return message


def miscounted(**fields: int) -> list[UploadForesightRequest]:
    """An upload whose commit is wrong in one number."""
    messages = upload(STEP, {"new": ONE})
    for name, value in fields.items():
        setattr(messages[-1].commit, name, value)
    return messages


NEW = chunk("new", ONE)
HEAD = header(STEP)
DENSE = np.zeros((2, 1 << 18), np.uint32)

REFUSALS: dict[str, tuple[Call, grpc.StatusCode, str]] = {
    "empty upload": (send(), INVALID, "must be its header"),
    "no header": (send(NEW), INVALID, "must be its header"),
    "two headers": (send(HEAD, HEAD), INVALID, "chunks and one commit"),
    "empty message": (send(HEAD, UploadForesightRequest()), INVALID, "chunks and one commit"),
    "no layers": (send(header(STEP, layers=[])), INVALID, "header.layers"),
    "layers not ascending": (send(header(STEP, layers=[2, 0])), INVALID, "ascending"),
    "no experts": (send(header(STEP, num_experts=0)), INVALID, "header.num_experts"),
    "too many experts": (send(header(STEP, num_experts=1 << 30)), INVALID, "header.num_experts"),
    "top_k above experts": (send(header(STEP, top_k=5)), INVALID, "header.top_k"),
    "huge histogram": (
        send(header(STEP, layers=range(4000), num_experts=256)),
        INVALID,
        "does not fit a message",
    ),
    "step out of range": (send(header(2**63)), INVALID, "header.step"),
    "other layers": (
        send(header(STEP, layers=[0, 3]), NEW, commit([NEW])),
        CONFLICT,
        "header.layers",
    ),
    "other top_k": (
        send(
            header(STEP, top_k=1),
            ids([[[1], [2]]]),
            commit([ids([[[1], [2]]])]),
        ),
        CONFLICT,
        "header.top_k",
    ),
    "other content": (send(*upload(STEP, {"a": histogram(0, 2, 0, 0)})), CONFLICT, "'a'"),
    "no name": (send(HEAD, chunk("", ONE)), INVALID, "chunk 0.sequence_id"),
    "long name": (send(HEAD, chunk("x" * 257, ONE)), INVALID, "chunk 0.sequence_id"),
    "no tokens": (
        send(HEAD, UploadForesightRequest(chunk=ForesightChunk(sequence_id="new"))),
        INVALID,
        "chunk 0.tokens",
    ),
    "no routing": (
        send(HEAD, NEW, UploadForesightRequest(chunk=ForesightChunk(sequence_id="n", tokens=1))),
        INVALID,
        "chunk 1: give histogram or expert_ids",
    ),
    "shape": (send(HEAD, bent(shape=[4, 2])), INVALID, "chunk 0.histogram: expected shape [2, 4]"),
    "dimensions": (send(HEAD, bent(shape=[8])), INVALID, "chunk 0.histogram: expected shape"),
    "data type": (send(HEAD, bent(data_type=5)), INVALID, "expected uint32, got int64"),
    "no data type": (send(HEAD, bent(data_type=0)), INVALID, "data_type 0"),
    "data type of the future": (send(HEAD, bent(data_type=99)), INVALID, "data_type 99"),
    "short data": (send(HEAD, bent(data=b"1234")), INVALID, "needs 32 bytes, got 4"),
    "miscounted histogram": (
        send(HEAD, bent(data=np.array([[2, 0, 0, 0], [1, 0, 0, 0]], np.uint32).tobytes())),
        INVALID,
        "layer 2 counts 1 pairs",
    ),
    "id too large": (
        send(HEAD, ids([[[1, 2], [0, 4]]])),
        INVALID,
        "chunk 0.expert_ids: expert ids: token 0, layer row 1 has expert 4",
    ),
    "id negative": (send(HEAD, ids([[[1, 2], [0, -1]]])), INVALID, "expert -1"),
    "tokens not as the ids'": (send(HEAD, ids([[[1, 2], [0, 3]]], tokens=2)), INVALID, "[2, 2, 2]"),
    "message too large": (send(HEAD, chunk("new", DENSE)), INVALID, "send a long sequence"),
    "chunks miscounted": (send(*miscounted(chunks=2)), INVALID, "commit.chunks"),
    "bytes miscounted": (send(*miscounted(payload_bytes=1)), INVALID, "commit.payload_bytes"),
    "checksum": (send(*miscounted(crc32=1)), INVALID, "commit.crc32"),
    "commit alone": (send(HEAD, upload(STEP, {"b": ONE})[-1]), INVALID, "commit.chunks"),
    "other topology": (register(replace(GROUP, ranks_per_node=1)), CONFLICT, "ranks_per_node"),
    "other ranks": (register(replace(GROUP, ranks=4)), CONFLICT, "ranks: "),
    "other spare slots": (register(replace(GROUP, spare_slots=2)), CONFLICT, "spare_slots"),
    "other experts": (register(replace(GROUP, num_experts=8)), CONFLICT, "num_experts"),
    "other layers of the group": (register(replace(GROUP, layers=(0, 1))), CONFLICT, "layers"),
    "rank outside the group": (unchecked(rank=2), INVALID, "rank: "),
    "uneven experts": (unchecked(num_experts=5), INVALID, "num_experts: 5 cannot be shared"),
    "uneven nodes": (unchecked(ranks=4, ranks_per_node=3), INVALID, "ranks_per_node: 3"),
    "unknown sequence": (
        schedule([[["a"], ["b"]]], stage=2),
        UNKNOWN,
        "micro_steps[0].ranks[1]: sequence 'b' has no foresight in step 7",
    ),
    "unknown step": (schedule([[["a"], []]], step=99), UNKNOWN, "step 99"),
    "unknown group": (schedule([[["a"], []]], ep_group="other"), UNKNOWN, "'other'"),
    "no stage": (schedule([[["a"], []]], stage=0), INVALID, "stage: 0 is no stage"),
    "stage of the future": (schedule([[["a"], []]], stage=9), INVALID, "stage: 9 is no stage"),
    "no micro-steps": (schedule([], stage=2), INVALID, "micro_steps (length)"),
    "ranks not as the group's": (
        schedule([[["a"], []], [["a"]]], stage=2),
        INVALID,
        "micro_steps[1].ranks: expected 2 entries",
    ),
    "mini-batch decreases": (
        schedule([[["a"], []], [["a"], []]], [1, 0], stage=2),
        INVALID,
        "micro_steps[1].mini_batch",
    ),
    "sequence twice": (schedule([[["a"], ["a"]]], stage=2), INVALID, "micro_steps[0].ranks[1]"),
    "other schedule": (schedule([[[], ["a"]]]), CONFLICT, "another schedule"),
    "proposal for an unknown group": (propose(ep_group="other"), UNKNOWN, "'other'"),
    "proposal for an unknown step": (propose(step=99), UNKNOWN, "step 99"),
    "proposal for a step out of range": (propose(step=2**63), INVALID, "step"),
    "proposal with an unknown sequence": (
        propose(["a"], ["b"]),
        UNKNOWN,
        "mini_batches[1]: sequence 'b' has no foresight in step 7",
    ),
    "proposal with a sequence twice": (
        propose(["a"], ["a"]),
        INVALID,
        "mini_batches[1]: sequence 'a' is named twice",
    ),
    "proposal with an empty mini-batch": (propose(["a"], []), INVALID, "mini_batches[1]"),
    "proposal without a budget": (propose(token_budget=0), INVALID, "token_budget"),
    "proposal of too many sequences": (
        propose(max_sequences=2**31),
        INVALID,
        "max_sequences",
    ),
    "proposal with negative attention": (
        propose(attention=schedule_pb2.AttentionCost(alpha=-1)),
        INVALID,
        "attention alpha",
    ),
    "proposal with attention that is no number": (
        propose(attention=schedule_pb2.AttentionCost(beta=float("nan"))),
        INVALID,
        "attention beta",
    ),
    "proposal with immense attention": (
        propose(attention=schedule_pb2.AttentionCost(beta=1e300)),
        INVALID,
        "fewer than 2**53",
    ),
    "stream of an unknown group": (stream("other", 0), UNKNOWN, "'other'"),
    "stream of an unknown rank": (stream("group", 5), UNKNOWN, "rank 5"),
    "report of an unknown rank": (report(rank=3), UNKNOWN, "rank 3"),
    "report of an unknown step": (report(step=99), UNKNOWN, "step 99"),
    "report before the schedule": (report(stage=2), NOT_READY, "has no schedule"),
    "report of no micro-step": (report(micro_step=1), INVALID, "micro_steps[0].micro_step"),
    "report of other layers": (report(layers=3), INVALID, "micro_steps[0].computed_tokens"),
    "report of spans of no micro-step": (ran([[4, 1, 0, 0, 9]]), INVALID, "timeline.spans"),
    "report of too many spans": (ran([[4, 0, 0, 0, 9]] * 1025), INVALID, "at most 1024, got 1025"),
    "report of a span that ends first": (ran([[4, 0, 0, 9, -1]]), INVALID, "is below 0"),
    "report of spans of another shape": (ran([[4, 0, 0, 0]]), INVALID, "shape [any, 5]"),
    "report from the far future": (ran([[4, 0, 0, 0, 9]], 2**63), INVALID, "began_unix_ns"),
    "report without a number": (report(seconds=float("nan")), INVALID, "exposed_seconds"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused_and_changes_nothing(
    daemon: DaemonProcess, channel: grpc.Channel, name: str
) -> None:
    call, code, text = REFUSALS[name]
    before = snapshot(daemon)
    with pytest.raises(grpc.RpcError) as refusal:
        call(channel)
    details = refusal.value.details() or ""
    assert (refusal.value.code(), text in details) == (code, True), (refusal.value.code(), details)
    assert "\n" not in details
    assert not re.search(r"(^|[\s'\"])/\w|\.py\b|Traceback", details)  # nothing of the server's
    assert snapshot(daemon) == before


def test_message_above_the_transport_limit_is_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        schedule([[["x" * (5 << 20)], []]])(channel)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_same_registration_and_schedule_again_are_fine(
    daemon: DaemonProcess, channel: grpc.Channel
) -> None:
    before = snapshot(daemon)
    register(GROUP)(channel)
    schedule([[["a"], []]])(channel)
    assert snapshot(daemon) == before


def test_sequence_above_the_budget_is_refused_by_name(
    daemon: DaemonProcess, channel: grpc.Channel
) -> None:
    send(*upload(STEP + 3, {"long": histogram(6, 0, 0, 0), "short": ONE}))(channel)
    before = snapshot(daemon)
    with pytest.raises(grpc.RpcError) as refusal:
        propose(step=STEP + 3, token_budget=2)(channel)
    assert refusal.value.code() is INVALID
    assert "token_budget: sequence 'long' has 3 tokens" in (refusal.value.details() or "")
    eventually(lambda: snapshot(daemon) == before)


def test_foresight_of_another_model_than_the_groups_is_refused(channel: grpc.Channel) -> None:
    piece = ids([[[1, 2], [0, 5]]])
    send(header(STEP + 1, num_experts=8), piece, commit([piece]))(channel)
    with pytest.raises(grpc.RpcError, match="has 8 experts per layer"):
        schedule([[["new"], []]], step=STEP + 1)(channel)
    piece = ids([[[1, 2]]])
    send(header(STEP + 2, layers=[0]), piece, commit([piece]))(channel)
    with pytest.raises(grpc.RpcError, match="has no layer 2"):
        schedule([[["new"], []]], step=STEP + 2)(channel)
