"""Calls as a client would make them that is broken, of another version, or means harm."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from foremoe.client import MicroStepReport, MicroStepSchedule, RankRegistration
from foremoe.rpc.arrays import encode_array
from foremoe.rpc.registration import encode_registration
from foremoe.rpc.report import encode_report
from foremoe.rpc.schedule import encode_micro_steps
from foremoe.rpc.v1 import rank_pb2, schedule_pb2, stage_pb2, status_pb2
from foremoe.rpc.v1.foresight_pb2 import ForesightChunk, UploadForesightRequest
from tests.runtime.fuzz_bytes import spoiled, spoiled_order
from tests.runtime.uploads import EXPERTS, LAYERS, TOP_K, commit, header, histogram, upload

STEP = 1
GROUP = RankRegistration("group", 0, 2, 2, 1, EXPERTS, LAYERS)
HOMES = np.array([[0, 1, 0, 1], [1, 0, 0, 1]], np.int32)
MOVING = replace(GROUP, ep_group="moving", moves_homes=True, home=HOMES)
SEQUENCES = {"a": histogram(2, 0, 0, 0), "b": histogram(0, 2, 2, 0)}
SCHEDULE = (MicroStepSchedule(0, [["a"], ["b"]]), MicroStepSchedule(0, [[], ["a"]]))
TOKEN = "0123456789abcdef-of-the-fuzzed-daemon"
UPLOAD = "/foremoe.rpc.v1.ForesightService/UploadForesight"
STREAM = "/foremoe.rpc.v1.RankService/StreamPlans"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
UNKNOWN = "/foremoe.rpc.v1.RankService/NoSuchMethod"


@dataclass(frozen=True, slots=True)
class Case:
    """A call of ``method`` with ``messages``; token is what it shows, None for nothing."""

    method: str
    messages: tuple[bytes, ...]
    token: str | None = TOKEN

    @property
    def target(self) -> str:
        """What it is counted under."""
        name = self.method.rpartition("/")[2]
        return name if self.token == TOKEN else "no token"


def submission(step: int, stage: int) -> schedule_pb2.SubmitScheduleRequest:
    return schedule_pb2.SubmitScheduleRequest(
        ep_group="group",
        step=step,
        stage=stage,  # type: ignore[arg-type]
        micro_steps=encode_micro_steps(SCHEDULE),
    )


def _reports() -> rank_pb2.ReportStageRequest:
    reports = [
        MicroStepReport(
            index, reason, np.array([2, 4]), np.array([0.1, 0.0]), 100, 10, 1, 5, 2, 1.5, 0.25
        )
        for index, reason in enumerate(("", "no plan in time"))
    ]
    return rank_pb2.ReportStageRequest(
        ep_group="group",
        rank=1,
        step=STEP,
        stage=stage_pb2.STAGE_RECOMPUTE,
        micro_steps=[encode_report(report) for report in reports],
    )


def _proposal() -> schedule_pb2.ProposeScheduleRequest:
    return schedule_pb2.ProposeScheduleRequest(
        ep_group="group",
        step=STEP,
        token_budget=4096,
        max_sequences=8,
        attention=schedule_pb2.AttentionCost(alpha=1.5, beta=0.5),
        mini_batches=[
            schedule_pb2.MiniBatch(sequence_ids=["a"]),
            schedule_pb2.MiniBatch(sequence_ids=["b"]),
        ],
    )


_OURS = "/foremoe.rpc.v1."
RIGHT: dict[str, tuple[Message, ...]] = {
    f"{_OURS}RankService/RegisterRank": (encode_registration(GROUP), encode_registration(MOVING)),
    f"{_OURS}RankService/ReportStage": (_reports(),),
    STREAM: (rank_pb2.StreamPlansRequest(ep_group="group", rank=1),),
    f"{_OURS}ScheduleService/ProposeSchedule": (_proposal(),),
    f"{_OURS}ScheduleService/SubmitSchedule": (submission(STEP, stage_pb2.STAGE_UPDATE),),
    f"{_OURS}ScheduleService/ReleaseStep": (schedule_pb2.ReleaseStepRequest(step=99),),
    f"{_OURS}StatusService/GetStatus": (status_pb2.GetStatusRequest(),),
    HEALTH: (HealthCheckRequest(service="foremoe.rpc.v1.RankService"),),
    REFLECTION: (
        ServerReflectionRequest(list_services="*"),
        ServerReflectionRequest(file_containing_symbol="foremoe.rpc.v1.RankService"),
    ),
    UNKNOWN: (status_pb2.GetStatusRequest(),),
}
# How often each is called, uploads beside them; what can go wrong in many ways more often.
_WEIGHTS = {UPLOAD: 12, HEALTH: 1, REFLECTION: 1, UNKNOWN: 1, STREAM: 2}
_METHODS = [method for method in (UPLOAD, *RIGHT) for _ in range(_WEIGHTS.get(method, 5))]


def _ids(sequence_id: str, dtype: type, *tokens: list[list[int]]) -> UploadForesightRequest:
    ids = np.array(tokens, dtype)
    return UploadForesightRequest(
        chunk=ForesightChunk(sequence_id=sequence_id, tokens=len(ids), expert_ids=encode_array(ids))
    )


def _whole(step: int, *chunks: UploadForesightRequest) -> list[UploadForesightRequest]:
    return [header(step), *chunks, commit(chunks)]


def right_upload(chance: random.Random) -> list[UploadForesightRequest]:
    """One of several: histograms or ids, known or new sequences, whole or in pieces."""
    step = chance.choice((STEP, STEP, STEP, 2, 3, 4, 5))
    name = chance.choice(("a", f"s{chance.randrange(40)}"))
    ids = _ids(name, chance.choice((np.uint8, np.uint16, np.int32)), [[0, 1], [2, 3]])
    more = _ids(name, np.uint8, [[1, 2], [3, 0]], [[0, 3], [1, 2]])
    return chance.choice(
        (
            lambda: upload(step, SEQUENCES),
            lambda: upload(step, {name: SEQUENCES["b"], f"{name}'": SEQUENCES["a"]}),
            lambda: _whole(step, ids, more),
            lambda: _whole(step, more, ids, _ids("c", np.int32, [[0, 1], [0, 1]])),
        )
    )()


def _spoiled_upload(chance: random.Random) -> list[bytes]:
    messages: list[Any] = list(right_upload(chance))
    way = chance.random()
    if way < 0.1:
        return [message.SerializeToString() for message in messages]  # replayed, most often
    if way < 0.5:
        messages = spoiled_order(messages, chance)
    data = [message.SerializeToString() for message in messages]
    if way >= 0.4 and data:
        place = chance.randrange(len(data))
        data[place] = spoiled(messages[place], chance)
    if way > 0.99:
        data.insert(1, bytes(chance.choice((1 << 20, 5 << 20))))
    return data


def _unknown_token(chance: random.Random) -> str | None:
    return chance.choice((None, "", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "x" * 4000))


def cases(seed: int) -> Callable[[], Case]:
    """Cases without end, the same for the same seed."""
    chance = random.Random(seed)

    def draw() -> Case:
        method = chance.choice(_METHODS)
        if method == UPLOAD:
            messages = tuple(_spoiled_upload(chance))
        else:
            messages = (spoiled(chance.choice(RIGHT[method]), chance),)
        token = TOKEN
        if method.startswith(_OURS) and chance.random() < 0.03:
            return Case(method, messages, _unknown_token(chance))
        return Case(method, messages, token)

    return draw


__all__ = ["GROUP", "MOVING", "RIGHT", "SEQUENCES", "TOP_K", "Case", "cases", "submission"]
