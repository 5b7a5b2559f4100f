"""The RL controller's side for asyncio programs."""

import asyncio
import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from foremoe.client.async_foresight_stream import AsyncForesightStream
from foremoe.client.controller import ControllerClient
from foremoe.client.controller_requests import proposal_request, release_request, submit_request
from foremoe.client.readiness import Progress, Readiness
from foremoe.client.retry import Attempts
from foremoe.errors import UnavailableError
from foremoe.planner.packing import AttentionCost
from foremoe.rpc.address import parse_address
from foremoe.rpc.channel import open_async_channel
from foremoe.rpc.codes import local_error
from foremoe.rpc.credentials import Credentials
from foremoe.rpc.proposal import ScheduleProposal, decode_proposal
from foremoe.rpc.schedule import MicroStepSchedule
from foremoe.rpc.status import RuntimeStatus, decode_status
from foremoe.rpc.v1.schedule_pb2_grpc import ScheduleServiceStub
from foremoe.rpc.v1.status_pb2 import GetStatusRequest
from foremoe.rpc.v1.status_pb2_grpc import StatusServiceStub
from foremoe.vocabulary import Stage


class AsyncControllerClient:
    """``ControllerClient`` for one event loop; its methods are coroutines, its errors the same.

    The channel is opened by the first call; make that after the last fork, in the loop that makes
    all others. Tasks may share a client, each with streams of its own. retry_seconds: how long a
    call waits for a daemon that is not there or restarts, made again and again; all calls are safe
    to repeat, and uploads are repeated as ``ForesightStream`` says. credentials: None takes those
    that the environment names, if any.
    """

    def __init__(
        self,
        address: str,
        timeout_seconds: float = 10.0,
        retry_seconds: float = 0.0,
        credentials: Credentials | None = None,
    ) -> None:
        self._address = parse_address(address)
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._uploads = ControllerClient(address, timeout_seconds, retry_seconds, credentials)

    def foresight_stream(
        self,
        step: int,
        layers: Sequence[int],
        num_experts: int,
        top_k: int,
        *,
        send_ids: bool = False,
    ) -> AsyncForesightStream:
        """An upload for ``step``: use with ``async with``; otherwise as ``ControllerClient``'s."""
        return AsyncForesightStream(
            self._uploads.foresight_stream(step, layers, num_experts, top_k, send_ids=send_ids)
        )

    async def propose_schedule(
        self,
        ep_group: str,
        step: int,
        token_budget: int,
        *,
        mini_batches: Sequence[Sequence[str]] = (),
        max_sequences: int | None = None,
        attention: AttentionCost | None = None,
    ) -> ScheduleProposal:
        """As ``ControllerClient.propose_schedule``."""
        request = proposal_request(
            ep_group, step, token_budget, mini_batches, max_sequences, attention
        )
        return decode_proposal(await self._ask(ScheduleServiceStub, "ProposeSchedule", request))

    async def submit_schedule(
        self, ep_group: str, step: int, stage: Stage, micro_steps: Sequence[MicroStepSchedule]
    ) -> int:
        """As ``ControllerClient.submit_schedule``."""
        request = submit_request(ep_group, step, stage, micro_steps)
        response = await self._ask(ScheduleServiceStub, "SubmitSchedule", request)
        return int(response.micro_steps)

    async def wait_planned(
        self,
        ep_group: str,
        step: int,
        stage: Stage,
        timeout_seconds: float,
        progress: Progress | None = None,
    ) -> None:
        """As ``ControllerClient.wait_planned``."""
        readiness = Readiness(ep_group, step, stage, timeout_seconds, progress)
        delays = readiness.delays()
        while not readiness.take(await self._snapshot("", readiness.seconds_left())):
            await asyncio.sleep(next(delays))

    async def release_step(self, step: int) -> None:
        """As ``ControllerClient.release_step``."""
        await self._ask(ScheduleServiceStub, "ReleaseStep", release_request(step))

    async def status(self, worst_micro_steps_of: str = "") -> RuntimeStatus:
        """A snapshot of what the daemon holds.

        worst_micro_steps_of: an EP group whose latest stages come with their worst micro-step, and
        with the figures of a report.
        """
        return await self._snapshot(worst_micro_steps_of, math.inf)

    async def close(self) -> None:
        """Close the channels; a later call opens others."""
        await asyncio.to_thread(self._uploads.close)
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = open_async_channel(self._address, self._credentials)
        return self._channel

    async def _snapshot(self, worst_micro_steps_of: str, limit_seconds: float) -> RuntimeStatus:
        request = GetStatusRequest(worst_micro_steps_of=worst_micro_steps_of)
        answer = await self._ask(StatusServiceStub, "GetStatus", request, limit_seconds)
        return decode_status(answer)

    async def _ask(
        self,
        service: Callable[..., Any],
        method: str,
        request: Any,
        limit_seconds: float = math.inf,
    ) -> Any:
        attempts = Attempts(self._timeout_seconds, self._retry_seconds, limit_seconds)
        while True:
            try:
                call = getattr(service(self._open()), method)
                return await call(request, timeout=attempts.timeout_seconds())
            except grpc.RpcError as error:
                failure = local_error(error, self._address)
            delay = attempts.delay()
            if delay is None or not isinstance(failure, UnavailableError):
                raise failure
            await asyncio.sleep(delay)
