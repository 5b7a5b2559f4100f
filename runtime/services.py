"""The gRPC services: take a message apart, ask the coordinator, put the answer together.

Errors are raised as ForemoeError; foremoe.runtime.boundary turns them into status codes.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from foremoe.errors import InvalidInputError
from foremoe.limits import MAX_STEP, UPLOAD_MESSAGE_BYTES, check_range
from foremoe.rpc.foresight import decode_chunk, decode_header
from foremoe.rpc.proposal import decode_proposal_request, encode_proposal
from foremoe.rpc.rank_plan import encode_rank_plan
from foremoe.rpc.registration import decode_registration
from foremoe.rpc.report import decode_reports
from foremoe.rpc.schedule import decode_micro_steps
from foremoe.rpc.stages import decode_stage
from foremoe.rpc.status import encode_status
from foremoe.rpc.timeline import decode_timeline
from foremoe.rpc.v1 import foresight_pb2, rank_pb2, schedule_pb2, status_pb2
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceServicer
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceServicer
from foremoe.rpc.v1.schedule_pb2_grpc import ScheduleServiceServicer
from foremoe.rpc.v1.status_pb2_grpc import StatusServiceServicer
from foremoe.runtime.coordinator import Coordinator
from foremoe.runtime.planning import PlanningPool
from foremoe.runtime.turns import Turns
from foremoe.runtime.upload import StagedUpload


class Signal:
    """Wakes every coroutine that waits at the moment of ``notify``."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


class ForesightService(ForesightServiceServicer):
    """Uploads: staged as they come, applied whole by their commit message and by nothing else."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._turns = Turns()

    async def UploadForesight(
        self, requests: AsyncIterator[foresight_pb2.UploadForesightRequest], _context: Any
    ) -> foresight_pb2.UploadForesightResponse:
        upload = await self._begin(requests)
        committed = False
        try:
            async for request in requests:
                if _part(request) == "commit":
                    added, known = self._coordinator.commit_upload(upload, request.commit)
                    committed = True
                    return foresight_pb2.UploadForesightResponse(
                        sequences_added=added, sequences_known=known
                    )
                self._stage(upload, request)
                del request  # whoever waits holds nothing
                await self._turns.take()  # before the next message is copied and parsed
        finally:
            if not committed:
                self._coordinator.abort_upload(upload)
        # A stream whose sender died ends just as a finished one does.
        raise InvalidInputError("the upload ended without a commit; nothing was kept")

    async def _begin(
        self, requests: AsyncIterator[foresight_pb2.UploadForesightRequest]
    ) -> StagedUpload:
        async for request in requests:
            if _part(request) != "header":
                break
            return self._coordinator.open_upload(decode_header(request.header))
        raise InvalidInputError("the first message of an upload must be its header")

    @staticmethod
    def _stage(upload: StagedUpload, request: foresight_pb2.UploadForesightRequest) -> None:
        if _part(request) != "chunk":
            raise InvalidInputError("after the header an upload has chunks and one commit")
        # Here, not in a thread: one that has to be given the interpreter costs the others more.
        upload.add(decode_chunk(request.chunk, upload.header, f"chunk {upload.chunks}"))


def _part(request: foresight_pb2.UploadForesightRequest) -> str | None:
    if request.ByteSize() > UPLOAD_MESSAGE_BYTES:
        raise InvalidInputError(
            f"a message of {request.ByteSize()} bytes; an upload's messages have at most "
            f"{UPLOAD_MESSAGE_BYTES}, send a long sequence in pieces"
        )
    part: str | None = request.WhichOneof("part")
    return part


class ScheduleService(ScheduleServiceServicer):
    """Schedules proposed and taken in, steps released."""

    def __init__(self, coordinator: Coordinator, pool: PlanningPool) -> None:
        self._coordinator = coordinator
        self._pool = pool

    async def ProposeSchedule(
        self, request: schedule_pb2.ProposeScheduleRequest, _context: Any
    ) -> schedule_pb2.ProposeScheduleResponse:
        job = self._coordinator.open_proposal(decode_proposal_request(request))
        queued = self._pool.run(job.propose)
        work = asyncio.wrap_future(queued)
        work.add_done_callback(lambda _: self._coordinator.close_proposal(job))
        try:
            return encode_proposal(await asyncio.shield(work))
        except asyncio.CancelledError:
            queued.cancel()  # in vain once a worker has it; then its bytes stay taken until the end
            raise

    async def SubmitSchedule(
        self, request: schedule_pb2.SubmitScheduleRequest, _context: Any
    ) -> schedule_pb2.SubmitScheduleResponse:
        micro_steps = self._coordinator.submit_schedule(
            request.ep_group,
            request.step,
            decode_stage(request.stage, "stage"),
            decode_micro_steps(request.micro_steps),
        )
        return schedule_pb2.SubmitScheduleResponse(micro_steps=micro_steps)

    async def ReleaseStep(
        self, request: schedule_pb2.ReleaseStepRequest, _context: Any
    ) -> schedule_pb2.ReleaseStepResponse:
        check_range(request.step, 0, MAX_STEP, "step")
        self._coordinator.release_step(request.step)
        return schedule_pb2.ReleaseStepResponse()


class RankService(RankServiceServicer):
    """Registration, plan streams and reports of the training ranks."""

    def __init__(self, coordinator: Coordinator, published: Signal) -> None:
        self._coordinator = coordinator
        self._published = published
        self._draining = False
        self._turns = Turns()

    def end_streams(self) -> None:
        """End every plan stream once it has sent all plans of the schedules accepted so far.

        The ranks' clients look for the next daemon by themselves.
        """
        self._draining = True
        self._published.notify()

    async def RegisterRank(
        self, request: rank_pb2.RegisterRankRequest, _context: Any
    ) -> rank_pb2.RegisterRankResponse:
        daemon_id = self._coordinator.register(decode_registration(request))
        return rank_pb2.RegisterRankResponse(daemon_id=daemon_id)

    async def StreamPlans(self, request: rank_pb2.StreamPlansRequest, context: Any) -> None:
        group = self._coordinator.open_stream(request.ep_group, request.rank)
        try:
            number = 0
            while True:
                plan = self._coordinator.next_plan(request.ep_group, number)
                if plan is None:
                    if self._draining and not self._coordinator.is_planning(request.ep_group):
                        return
                    await self._published.wait()
                    continue
                number = plan.number
                await self._turns.take()
                await context.write(
                    encode_rank_plan(plan.for_rank(group.description, request.rank))
                )
        finally:
            self._coordinator.close_stream(group)

    async def ReportStage(
        self, request: rank_pb2.ReportStageRequest, _context: Any
    ) -> rank_pb2.ReportStageResponse:
        await self._turns.take()
        group = self._coordinator.groups.member(request.ep_group, request.rank)
        layers = len(group.description.layers)
        self._coordinator.report(
            request.ep_group,
            request.rank,
            request.step,
            decode_stage(request.stage, "stage"),
            decode_reports(request.micro_steps, layers),
            decode_timeline(request.timeline, "timeline") if request.HasField("timeline") else None,
        )
        return rank_pb2.ReportStageResponse()


class StatusService(StatusServiceServicer):
    """One snapshot."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def GetStatus(
        self, request: status_pb2.GetStatusRequest, _context: Any
    ) -> status_pb2.GetStatusResponse:
        return encode_status(self._coordinator.status(), (request.worst_micro_steps_of,))
