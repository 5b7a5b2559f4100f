"""What leaves the daemon when a service fails, on a server in this process."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    ForemoeError,
    InvalidInputError,
    NotReadyError,
    UnavailableError,
    UnknownError,
)
from foremoe.rpc.v1 import foresight_pb2, rank_pb2, status_pb2
from foremoe.rpc.v1.foresight_pb2_grpc import (
    ForesightServiceServicer,
    ForesightServiceStub,
    add_ForesightServiceServicer_to_server,
)
from foremoe.rpc.v1.rank_pb2_grpc import (
    RankServiceServicer,
    RankServiceStub,
    add_RankServiceServicer_to_server,
)
from foremoe.rpc.v1.status_pb2_grpc import (
    StatusServiceServicer,
    StatusServiceStub,
    add_StatusServiceServicer_to_server,
)
from foremoe.runtime.access import Access
from foremoe.runtime.boundary import Boundary

SECRET = "boom secret=/etc/x"


class Faulty(StatusServiceServicer, RankServiceServicer, ForesightServiceServicer):
    """Raises ``error`` in a call of every shape, after some of a stream."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def GetStatus(self, _request: Any, _context: Any) -> None:
        raise self.error

    async def StreamPlans(self, _request: Any, context: Any) -> None:
        await context.write(rank_pb2.StreamPlansResponse())
        raise self.error

    async def UploadForesight(self, requests: AsyncIterator[Any], _context: Any) -> None:
        async for _ in requests:
            raise self.error


async def call_all(path: Path, error: Exception, draining: bool = False) -> list[grpc.RpcError]:
    boundary = Boundary(Access(None))
    boundary.draining = draining
    server = grpc.aio.server(interceptors=[boundary])
    faulty = Faulty(error)
    add_StatusServiceServicer_to_server(faulty, server)
    add_RankServiceServicer_to_server(faulty, server)
    add_ForesightServiceServicer_to_server(faulty, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    errors: list[grpc.RpcError] = []
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        calls = (
            StatusServiceStub(channel).GetStatus(status_pb2.GetStatusRequest()),
            drained(RankServiceStub(channel).StreamPlans(rank_pb2.StreamPlansRequest())),
            ForesightServiceStub(channel).UploadForesight(
                iter([foresight_pb2.UploadForesightRequest()])
            ),
        )
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call
            errors.append(refusal.value)
    assert await boundary.wait_idle(5.0)
    await server.stop(None)
    return errors


async def drained(stream: Any) -> None:
    async for _ in stream:
        pass


Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Loop:
    factory: Loop = request.param
    return factory


def test_bug_is_internal_with_an_id_and_no_text(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner, caplog.at_level(logging.ERROR):
        errors = runner.run(call_all(tmp_path / "s", ValueError(SECRET)))
    for error in errors:
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (error.details() or "")
        fault = re.search("internal error ([0-9a-f]{12})", error.details() or "")
        assert fault is not None
        assert fault[1] in caplog.text
    assert caplog.text.count(SECRET) >= len(errors)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
        (UnknownError, grpc.StatusCode.NOT_FOUND),
        (ConflictError, grpc.StatusCode.ALREADY_EXISTS),
        (NotReadyError, grpc.StatusCode.FAILED_PRECONDITION),
        (ExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_each_error_class_has_its_code(
    tmp_path: Path, error: type[ForemoeError], code: grpc.StatusCode
) -> None:
    for refusal in asyncio.run(call_all(tmp_path / "s", error("what to do"))):
        assert (refusal.code(), refusal.details()) == (code, "what to do")


def test_long_text_is_cut(tmp_path: Path) -> None:
    for refusal in asyncio.run(call_all(tmp_path / "s", InvalidInputError("x" * 100_000))):
        assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(refusal.details() or "") == 1000


def test_calls_of_every_shape_are_refused_while_draining(loop: Loop, tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        errors = runner.run(call_all(tmp_path / "s", ValueError(SECRET), draining=True))
    for error in errors:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "draining" in (error.details() or "")
