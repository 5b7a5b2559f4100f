"""Sends a rank's stage reports in the background; a lost report costs a figure, never a step."""

import logging
import queue
import threading
from collections.abc import Sequence
from contextlib import ExitStack

import grpc

from foremoe.errors import InvalidInputError
from foremoe.rpc.address import Address
from foremoe.rpc.channel import open_channel
from foremoe.rpc.codes import local_error
from foremoe.rpc.credentials import Credentials
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.report import MicroStepReport, encode_report
from foremoe.rpc.stages import encode_stage
from foremoe.rpc.timeline import Timeline, encode_timeline
from foremoe.rpc.v1.rank_pb2 import ReportStageRequest
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceStub
from foremoe.timeline.chrome_trace import Clock
from foremoe.timeline.span import Span
from foremoe.vocabulary import Stage

log = logging.getLogger(__name__)

CALL_SECONDS = 2.0
QUEUED_REPORTS = 256

_Report = tuple[int, Stage, tuple[MicroStepReport, ...], Sequence[Span]]


class Reporter:
    """A queue of reports and the thread that empties it."""

    def __init__(
        self,
        address: Address,
        registration: RankRegistration,
        credentials: Credentials | None = None,
    ) -> None:
        self.dropped = 0
        self._address = address
        self._registration = registration
        self._credentials = credentials
        self._reports: queue.Queue[_Report | None] = queue.Queue(QUEUED_REPORTS)
        self._thread = threading.Thread(
            target=self._send_all, name=f"foremoe-reports-{registration.rank}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def add(
        self,
        step: int,
        stage: Stage,
        micro_steps: Sequence[MicroStepReport],
        spans: Sequence[Span] = (),
    ) -> None:
        """Returns at once; the arrays must not change afterwards. spans: what ran when."""
        try:
            self._reports.put_nowait((step, stage, tuple(micro_steps), spans))
        except queue.Full:
            self._drop("the queue is full")

    def close(self, timeout_seconds: float) -> None:
        """Send what is queued, for at most ``timeout_seconds``."""
        try:
            self._reports.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _send_all(self) -> None:
        with ExitStack() as resources:
            stub: RankServiceStub | None = None
            while (report := self._reports.get()) is not None:
                try:
                    if stub is None:  # opened here, after any fork
                        channel = open_channel(self._address, self._credentials)
                        stub = RankServiceStub(resources.enter_context(channel))
                    stub.ReportStage(self._request(*report), timeout=CALL_SECONDS)
                except grpc.RpcError as error:
                    self._drop(str(local_error(error, self._address)))
                except InvalidInputError as error:  # of the credentials' files
                    self._drop(str(error))

    def _request(
        self,
        step: int,
        stage: Stage,
        micro_steps: tuple[MicroStepReport, ...],
        spans: Sequence[Span],
    ) -> ReportStageRequest:
        ran = Timeline.of(spans, Clock.here().ahead_ns) if spans else None
        return ReportStageRequest(
            ep_group=self._registration.ep_group,
            rank=self._registration.rank,
            step=step,
            stage=encode_stage(stage),
            micro_steps=[encode_report(report) for report in micro_steps],
            timeline=None if ran is None else encode_timeline(ran),
        )

    def _drop(self, reason: str) -> None:
        if self.dropped == 0:
            log.warning("a stage report was dropped, more will be counted only: %s", reason)
        self.dropped += 1
