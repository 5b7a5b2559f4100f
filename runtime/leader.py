"""A daemon that plans: alone, or as the leader of followers that bring it their nodes' ranks."""

import asyncio
import logging
import os

import grpc

from foremoe.errors import InvalidInputError
from foremoe.planner import policies
from foremoe.rpc.status_file import SUFFIX, save_status
from foremoe.rpc.v1.foresight_pb2_grpc import add_ForesightServiceServicer_to_server
from foremoe.rpc.v1.rank_pb2_grpc import add_RankServiceServicer_to_server
from foremoe.rpc.v1.schedule_pb2_grpc import add_ScheduleServiceServicer_to_server
from foremoe.rpc.v1.status_pb2_grpc import add_StatusServiceServicer_to_server
from foremoe.runtime.boundary import Boundary
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.coordinator import Coordinator
from foremoe.runtime.metrics import Snapshot
from foremoe.runtime.planning import PlanningJob, PlanningPool
from foremoe.runtime.services import (
    ForesightService,
    RankService,
    ScheduleService,
    Signal,
    StatusService,
)
from foremoe.timeline.recorder import CAPACITY, SpanRecorder

log = logging.getLogger(__name__)


class Leader:
    """The services, and the coordinator behind them, on the running event loop."""

    def __init__(self, config: RuntimeConfig) -> None:
        self._spans = _recorder(config)
        self._timeline = config.timeline
        self._pool = PlanningPool(
            policies.POLICIES[config.policy],
            config.planning_workers,
            asyncio.get_running_loop().call_soon_threadsafe,
            self._spans,
        )
        published = Signal()
        self._coordinator = Coordinator(config, self._start_planning, published.notify)
        self._ranks = RankService(self._coordinator, published)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have ``server`` answer ForeMoE's services."""
        coordinator = self._coordinator
        add_ForesightServiceServicer_to_server(ForesightService(coordinator), server)
        add_ScheduleServiceServicer_to_server(ScheduleService(coordinator, self._pool), server)
        add_RankServiceServicer_to_server(self._ranks, server)
        add_StatusServiceServicer_to_server(StatusService(coordinator), server)

    def snapshot(self, boundary: Boundary) -> Snapshot:
        """What there is to show now."""
        return Snapshot(
            self._coordinator.status(),
            self._coordinator.totals(),
            dict(boundary.ended),
            boundary.running,
            boundary.draining,
        )

    def end_streams(self) -> None:
        """End every plan stream; the ranks' clients look for the next daemon by themselves."""
        self._ranks.end_streams()

    async def close(self) -> None:
        """Release everything; call it when no call runs any more."""
        for step in list(self._coordinator.steps):
            self._coordinator.release_step(step)
        self._pool.close()
        self._spans.save()
        self._save_status()

    def _save_status(self) -> None:
        """A folder that cannot be written costs a warning."""
        if self._timeline is None:
            return
        try:
            save_status(
                self._timeline / f"daemon-{os.getpid()}{SUFFIX}", self._coordinator.status()
            )
        except InvalidInputError as error:
            log.warning("no status for a report: %s", error)

    def _start_planning(self, job: PlanningJob) -> None:
        self._pool.start(job, self._coordinator)


def _recorder(config: RuntimeConfig) -> SpanRecorder:
    if config.timeline is None:
        return SpanRecorder()
    path = config.timeline / f"daemon-{os.getpid()}.json"
    return SpanRecorder(CAPACITY, path, process="daemon")
