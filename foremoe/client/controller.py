"""The RL controller's side: foresight and schedules in, steps released, status out."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from foremoe.client.controller_requests import proposal_request, release_request, submit_request
from foremoe.client.foresight_stream import ForesightStream
from foremoe.client.readiness import Progress, Readiness
from foremoe.client.retry import Attempts
from foremoe.errors import UnavailableError
from foremoe.planner.packing import AttentionCost
from foremoe.rpc.address import parse_address
from foremoe.rpc.channel import close_channel, open_channel
from foremoe.rpc.codes import daemon_error, local_error
from foremoe.rpc.credentials import Credentials
from foremoe.rpc.foresight import UploadHeader
from foremoe.rpc.proposal import (
    ScheduleProposal,
    decode_proposal,
)
from foremoe.rpc.schedule import MicroStepSchedule
from foremoe.rpc.status import RuntimeStatus, decode_status
from foremoe.rpc.v1.schedule_pb2_grpc import ScheduleServiceStub
from foremoe.rpc.v1.status_pb2 import GetStatusRequest
from foremoe.rpc.v1.status_pb2_grpc import StatusServiceStub
from foremoe.vocabulary import Stage

__all__ = ["ControllerClient", "MicroStepSchedule"]


class ControllerClient:
    """A synchronous client of the daemon at ``address`` (a socket path or HOST:PORT).

    Nothing is opened before the first call; make that after the last fork. Every method raises the
    daemon's refusal as the foremoe.errors class it is, and UnavailableError when no daemon answers
    within ``timeout_seconds``. Threads may share a client, each with streams of its own.
    retry_seconds: how long a call waits for a daemon that is not there or restarts, made again and
    again; all calls are safe to repeat, and uploads are repeated as ``ForesightStream`` says.
    credentials: None takes those that the environment names, if any.
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
        self._channel: grpc.Channel | None = None
        self._guard = threading.Lock()

    def foresight_stream(
        self,
        step: int,
        layers: Sequence[int],
        num_experts: int,
        top_k: int,
        *,
        send_ids: bool = False,
    ) -> ForesightStream:
        """An upload for ``step``: use as a context manager, ``add`` sequences, leave to commit.

        layers: global decoder layer ids, ascending, the order of every array's layer axis.
        send_ids: send expert ids as they are and let the daemon count them; more bytes, for
            callers that cannot spare the time.
        """
        header = UploadHeader(step, tuple(layers), num_experts, top_k)
        return ForesightStream(
            self._open,
            lambda: open_channel(self._address, self._credentials),
            self._address,
            header,
            self._timeout_seconds,
            self._retry_seconds,
            send_ids,
        )

    def propose_schedule(
        self,
        ep_group: str,
        step: int,
        token_budget: int,
        *,
        mini_batches: Sequence[Sequence[str]] = (),
        max_sequences: int | None = None,
        attention: AttentionCost | None = None,
    ) -> ScheduleProposal:
        """Have the sequences of a step packed by their routing; submit the ``micro_steps`` as is.

        token_budget, max_sequences: most a rank is given in one micro-step. mini_batches: sequence
        ids by mini-batch, in order; by default one of all the step's sequences. attention: work on
        a sequence but for its experts, by default none.

        Takes up to some seconds. Raises UnknownError for a group, step or sequence the daemon does
        not know, InvalidInputError for a sequence above the budget, ExhaustedError when the daemon
        has no memory to pack in.
        """
        request = proposal_request(
            ep_group, step, token_budget, mini_batches, max_sequences, attention
        )
        return decode_proposal(self._ask(ScheduleServiceStub, "ProposeSchedule", request))

    def submit_schedule(
        self, ep_group: str, step: int, stage: Stage, micro_steps: Sequence[MicroStepSchedule]
    ) -> int:
        """Say which sequences each rank processes in each micro-step; how many will be planned.

        The same schedule twice is fine. Raises UnknownError for a group, step or sequence the
        daemon does not know, ConflictError for another schedule of the same stage.
        """
        request = submit_request(ep_group, step, stage, micro_steps)
        response = self._ask(ScheduleServiceStub, "SubmitSchedule", request)
        return int(response.micro_steps)

    def wait_planned(
        self,
        ep_group: str,
        step: int,
        stage: Stage,
        timeout_seconds: float,
        progress: Progress | None = None,
    ) -> None:
        """Return when every micro-step of a scheduled stage has its plan.

        Training need not wait: ranks wait for each plan a little, and go on without. progress is
        called with micro-steps planned and all micro-steps, at first and whenever more are planned;
        it never goes back. Raises NotReadyError after ``timeout_seconds`` or when planning broke
        off, UnknownError for a stage without schedule (of a daemon that was restarted, say),
        UnavailableError when no daemon answers, soon after ``timeout_seconds`` if not before.
        """
        readiness = Readiness(ep_group, step, stage, timeout_seconds, progress)
        delays = readiness.delays()
        while not readiness.take(self._snapshot("", readiness.seconds_left())):
            time.sleep(next(delays))

    def release_step(self, step: int) -> None:
        """End a step and free all that the daemon keeps for it; releasing it again is fine."""
        self._ask(ScheduleServiceStub, "ReleaseStep", release_request(step))

    def status(self, worst_micro_steps_of: str = "") -> RuntimeStatus:
        """A snapshot of what the daemon holds.

        worst_micro_steps_of: an EP group whose latest stages come with their worst micro-step, and
        with the figures of a report.
        """
        return self._snapshot(worst_micro_steps_of, math.inf)

    def close(self) -> None:
        """Close the channel; a later call opens another."""
        with self._guard:
            channel, self._channel = self._channel, None
        if channel is not None:
            close_channel(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> grpc.Channel:
        with self._guard:
            if self._channel is None:
                self._channel = open_channel(self._address, self._credentials)
            return self._channel

    def _snapshot(self, worst_micro_steps_of: str, limit_seconds: float) -> RuntimeStatus:
        request = GetStatusRequest(worst_micro_steps_of=worst_micro_steps_of)
        return decode_status(self._ask(StatusServiceStub, "GetStatus", request, limit_seconds))

    def _ask(
        self,
        service: Callable[[grpc.Channel], Any],
        method: str,
        request: Any,
        limit_seconds: float = math.inf,
    ) -> Any:
        attempts = Attempts(self._timeout_seconds, self._retry_seconds, limit_seconds)
        while True:
            try:
                call = getattr(service(self._open()), method)
                return call(request, timeout=attempts.timeout_seconds())
            except grpc.RpcError as error:
                failure = local_error(error, self._address)
                if error.code() is grpc.StatusCode.UNAVAILABLE and daemon_error(error) is None:
                    self.close()  # a new channel finds a restarted daemon without a backoff
            delay = attempts.delay()
            if delay is None or not isinstance(failure, UnavailableError):
                raise failure
            time.sleep(delay)
