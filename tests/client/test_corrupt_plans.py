"""Plans that a faulty daemon sends are dropped and counted; right ones still arrive."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from foremoe.client import RankClient, RankPlan, RankRegistration
from foremoe.planner.plan import placement_digest
from foremoe.rpc.rank_plan import encode_rank_plan
from foremoe.rpc.v1 import rank_pb2
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceServicer, add_RankServiceServicer_to_server
from foremoe.vocabulary import Stage
from tests.runtime.eventually import eventually

GROUP = RankRegistration("group", 0, 2, 2, 1, 4, (1, 3))
HOME = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], np.int32)
REPLICAS = np.array([[[2], [0]], [[-1], [0]]], np.int32)
TOKENS = np.array([[[3], [4]], [[0], [5]]], np.int64)

Message = rank_pb2.StreamPlansResponse


def right(
    micro_step: int = 0,
    home: Any = HOME,
    replica_expert: Any = REPLICAS,
    replica_tokens: Any = TOKENS,
    layers: tuple[int, ...] = GROUP.layers,
) -> Message:
    """A message whose digest fits, whatever the arrays are."""
    ids = np.array(layers, np.int32)
    digest = placement_digest(1, Stage.UPDATE, micro_step, ids, home, replica_expert)
    return encode_rank_plan(
        RankPlan(
            1, Stage.UPDATE, micro_step, 2, 0, ids, home, replica_expert, replica_tokens, digest
        )
    )


def bent(bend: Callable[[Message], object]) -> Message:
    message = right()
    bend(message)
    return message


def changed(array: Any, index: tuple[int, ...], value: int) -> Any:
    copy = array.copy()
    copy[index] = value
    return copy


CORRUPT = {
    "digest": bent(lambda plan: setattr(plan, "placement_digest", b"x" * 16)),
    "no digest": bent(lambda plan: plan.ClearField("placement_digest")),
    "step": bent(lambda plan: setattr(plan, "step", 2)),
    "stage": bent(lambda plan: setattr(plan, "stage", 1)),
    "no stage": bent(lambda plan: setattr(plan, "stage", 0)),
    "stage of the future": bent(lambda plan: setattr(plan, "stage", 77)),
    "micro-step": bent(lambda plan: setattr(plan, "micro_step", 1)),
    "micro-steps": bent(lambda plan: setattr(plan, "micro_steps", 0)),
    "one bit of home": bent(lambda plan: setattr(plan.home, "data", b"\x01" + plan.home.data[1:])),
    "short home": bent(lambda plan: setattr(plan.home, "data", plan.home.data[:-1])),
    "shape of home": bent(lambda plan: plan.home.shape.reverse()),
    "type of replicas": bent(lambda plan: setattr(plan.replica_expert, "data_type", 3)),
    "no tokens": bent(lambda plan: plan.ClearField("replica_tokens")),
    "layers": right(layers=(1, 4)),
    "fewer layers": right(layers=(1,)),
    "home rank": right(home=changed(HOME, (0, 0), 2)),
    "negative home rank": right(home=changed(HOME, (0, 0), -1)),
    "replica expert": right(replica_expert=changed(REPLICAS, (0, 0, 0), 4)),
    "negative replica expert": right(replica_expert=changed(REPLICAS, (0, 0, 0), -2)),
    "replica at home": right(replica_expert=changed(REPLICAS, (0, 0, 0), 1)),
    "negative tokens": right(replica_tokens=changed(TOKENS, (0, 0, 0), -1)),
    "tokens of an empty slot": right(replica_tokens=changed(TOKENS, (1, 0, 0), 1)),
}


class Faulty(RankServiceServicer):
    """Sends ``messages`` and then a right plan for micro-step 1."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    def RegisterRank(self, _request: Any, _context: Any) -> rank_pb2.RegisterRankResponse:
        return rank_pb2.RegisterRankResponse(daemon_id="faulty")

    def StreamPlans(self, _request: Any, context: Any) -> Iterator[Message]:
        yield from self.messages
        yield right(micro_step=1)
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait()


@pytest.fixture
def serve_plans(tmp_path: Path) -> Iterator[Callable[[list[Message]], str]]:
    server = grpc.server(ThreadPoolExecutor(4))

    def start(messages: list[Message]) -> str:
        add_RankServiceServicer_to_server(Faulty(messages), server)
        server.add_insecure_port(f"unix:{tmp_path}/s")
        server.start()
        return f"{tmp_path}/s"

    yield start
    server.stop(None).wait()


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_plan_is_dropped_and_counted(
    serve_plans: Callable[[list[Message]], str], name: str
) -> None:
    with RankClient(serve_plans([CORRUPT[name]]), GROUP) as client:
        good = client.wait(1, Stage.UPDATE, 1, 20.0)
        assert good is not None
        assert np.array_equal(good.replica_tokens, TOKENS)
        assert client.corrupt_plans == 1
        assert client.wait(1, Stage.UPDATE, 0, 0.0) is None
        assert client.wait(1, Stage.RECOMPUTE, 0, 0.0) is None


def test_a_flood_of_corrupt_plans_is_logged_once(
    serve_plans: Callable[[list[Message]], str], caplog: pytest.LogCaptureFixture
) -> None:
    with RankClient(serve_plans(list(CORRUPT.values())), GROUP) as client:
        eventually(lambda: client.corrupt_plans == len(CORRUPT))
        assert client.wait(1, Stage.UPDATE, 1, 20.0) is not None
    assert caplog.text.count("a plan was dropped") == 1
