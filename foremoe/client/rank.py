"""A training rank's link to the runtime of its node: plans in, reports out, never in the way."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from foremoe.client.plan_inbox import PlanInbox
from foremoe.client.reporter import Reporter
from foremoe.errors import (
    ConflictError,
    ForemoeError,
    InvalidInputError,
    LeaderLostError,
    UnavailableError,
    VersionError,
)
from foremoe.rpc.address import parse_address
from foremoe.rpc.channel import open_channel
from foremoe.rpc.codes import local_error
from foremoe.rpc.credentials import Credentials
from foremoe.rpc.rank_plan import RankPlan, decode_rank_plan
from foremoe.rpc.registration import RankRegistration, encode_registration
from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.v1.rank_pb2 import StreamPlansRequest, StreamPlansResponse
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceStub
from foremoe.timeline.recorder import SpanRecorder
from foremoe.vocabulary import DegradedReason, Stage

__all__ = ["MicroStepReport", "RankClient", "RankPlan", "RankRegistration"]

log = logging.getLogger(__name__)

REGISTER_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.05
LAST_BACKOFF_SECONDS = 1.0
_PERMANENT = (ConflictError, InvalidInputError)


class RankClient:
    """Registers the rank, keeps its plan stream open and finds a restarted daemon again.

    All of it happens on background threads that are started, and open their channels, in
    ``start()``: construct the client at any time, start it after the last fork. Training never
    depends on the daemon: without one, ``wait`` answers None and reports are dropped.
    credentials: None takes those that the environment names, if any. spans: takes waits for plans,
    and has what ran when in a stage.
    """

    def __init__(
        self,
        address: str,
        registration: RankRegistration,
        credentials: Credentials | None = None,
        spans: SpanRecorder | None = None,
    ) -> None:
        self._spans = spans or SpanRecorder()
        self._address = parse_address(address)
        self._credentials = credentials
        self._registration = registration
        self._inbox = PlanInbox()
        self._reporter = Reporter(self._address, registration, credentials)
        self._corrupt_plans = 0
        self._refusal: ForemoeError | None = None
        self._lost = DegradedReason.RUNTIME_LOST
        self._answered = threading.Event()
        self._closing = threading.Event()
        self._call: Any = None
        self._call_guard = threading.Lock()
        self._thread = threading.Thread(
            target=self._keep_connected, name=f"foremoe-plans-{registration.rank}", daemon=True
        )

    @property
    def connected(self) -> bool:
        """Whether the plan stream is open now."""
        return self._inbox.is_open

    @property
    def missing_reason(self) -> DegradedReason:
        """Why a plan that is not here may be missing."""
        return DegradedReason.NO_PLAN if self.connected else self._lost

    @property
    def corrupt_plans(self) -> int:
        """Plans that were dropped because they were malformed or did not match their digest."""
        return self._corrupt_plans

    @property
    def dropped_reports(self) -> int:
        """Reports that no daemon took."""
        return self._reporter.dropped

    def start(self, first_answer_seconds: float = 2.0) -> None:
        """Start the background threads and wait briefly for the first answer.

        Raises the daemon's refusal (ConflictError, InvalidInputError) if it does not take this
        rank. A daemon that is not there is no error: the client keeps looking.
        """
        self._reporter.start()
        self._thread.start()
        self._answered.wait(first_answer_seconds)
        if self._refusal is not None:
            self.close()
            raise self._refusal

    def wait(
        self, step: int, stage: Stage, micro_step: int, timeout_seconds: float
    ) -> RankPlan | None:
        """The plan of a micro-step; microseconds when it is here already.

        None at the deadline, and at once when no daemon is connected. A stage that timed out is
        not waited for again until one of its plans arrives.
        """
        began = time.monotonic()
        plan = self._inbox.wait(step, stage, micro_step, timeout_seconds)
        self._spans.waited("plans", time.monotonic() - began)
        return plan

    def forget_before(self, step: int) -> None:
        """Free the plans of all steps below ``step``."""
        self._inbox.forget_before(step)

    def report(self, step: int, stage: Stage, micro_steps: Sequence[MicroStepReport]) -> None:
        """Queue reports of micro-steps that were run, and what ran when; returns at once."""
        self._reporter.add(step, stage, micro_steps, self._spans.take_sample(step, stage))

    def homes_moved(self, home: NDArray[np.int32]) -> None:
        """Tell the next daemon that experts live at ``home [L, E]`` now; this one knows."""
        self._registration = replace(self._registration, home=home)

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Send the queued reports and end both threads.

        Takes at most three times ``timeout_seconds``.
        """
        self._closing.set()
        self._reporter.close(timeout_seconds)
        with self._call_guard:
            if self._call is not None:
                self._call.cancel()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _keep_connected(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while not self._closing.is_set() and self._refusal is None:
            try:
                self._follow_plans()
                self._lost = DegradedReason.RUNTIME_LOST  # it drains
            except grpc.RpcError as error:
                failure = local_error(error, self._address)
                self._lost = _reason(failure)
                self._explain(failure, permanent=isinstance(failure, _PERMANENT))
            except InvalidInputError as error:  # of the credentials' files, which may be mended
                self._explain(error, permanent=not self._answered.is_set())
            except grpc.FutureCancelledError:  # by close(), while registering
                return
            finally:
                if self._inbox.is_open:
                    backoff = FIRST_BACKOFF_SECONDS
                self._inbox.close()
                self._answered.set()
            self._closing.wait(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)

    def _follow_plans(self) -> None:
        """Register and receive plans until the stream ends."""
        with open_channel(self._address, self._credentials) as channel:
            stub = RankServiceStub(channel)
            self._begin(
                stub.RegisterRank.future(
                    encode_registration(self._registration), timeout=REGISTER_SECONDS
                )
            ).result()
            stream = self._begin(
                stub.StreamPlans(
                    StreamPlansRequest(
                        ep_group=self._registration.ep_group, rank=self._registration.rank
                    )
                )
            )
            self._inbox.open()
            self._answered.set()
            for message in stream:
                self._receive(message)

    def _begin(self, call: Any) -> Any:
        """Make ``call`` the one that close() cancels."""
        with self._call_guard:
            self._call = call
            if self._closing.is_set():
                call.cancel()
        return call

    def _receive(self, message: StreamPlansResponse) -> None:
        try:
            plan = decode_rank_plan(message, self._registration)
        except InvalidInputError as error:
            if self._corrupt_plans == 0:
                log.warning("a plan was dropped, more will be counted only: %s", error)
            self._corrupt_plans += 1
        else:
            self._inbox.put(plan)

    def _explain(self, error: ForemoeError, permanent: bool) -> None:
        if self._closing.is_set():
            return
        if permanent:
            self._refusal = error
            log.error("the runtime refuses this rank: %s", error)
        elif self._inbox.is_open or not self._answered.is_set():
            level = logging.WARNING if isinstance(error, UnavailableError) else logging.ERROR
            log.log(level, "no plans until the runtime is back: %s", error)


def _reason(failure: ForemoeError) -> DegradedReason:
    """What a rank without a runtime that it can talk to says."""
    if isinstance(failure, LeaderLostError):
        return DegradedReason.LEADER_LOST
    if isinstance(failure, VersionError):
        return DegradedReason.OTHER_VERSION
    return DegradedReason.RUNTIME_LOST
