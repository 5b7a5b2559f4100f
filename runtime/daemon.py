"""The daemon process: listens, serves until it is told to stop, and drains."""

import asyncio
import importlib.util
import ipaddress
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from foremoe.errors import ConflictError, InvalidInputError
from foremoe.foresight.histogram import ID_DTYPES, expert_histogram
from foremoe.planner import packing, policies, step_homes
from foremoe.rpc.address import Address, TcpAddress, UnixAddress, parse_address
from foremoe.rpc.v1 import foresight_pb2, rank_pb2, schedule_pb2, status_pb2
from foremoe.rpc.v1.foresight_pb2_grpc import add_ForesightServiceServicer_to_server
from foremoe.rpc.v1.rank_pb2_grpc import add_RankServiceServicer_to_server
from foremoe.rpc.v1.schedule_pb2_grpc import add_ScheduleServiceServicer_to_server
from foremoe.rpc.v1.status_pb2_grpc import add_StatusServiceServicer_to_server
from foremoe.runtime.boundary import Boundary
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.coordinator import Coordinator
from foremoe.runtime.lock import hold_socket
from foremoe.runtime.metrics import Snapshot
from foremoe.runtime.planning import PlanningJob, PlanningPool
from foremoe.runtime.services import (
    ForesightService,
    RankService,
    ScheduleService,
    Signal,
    StatusService,
)
from foremoe.runtime.side_port import SidePort

log = logging.getLogger(__name__)

MAX_CONCURRENT_CALLS = 4096
LAST_GRACE_SECONDS = 0.2
SERVICES = tuple(
    service.full_name
    for module in (foresight_pb2, rank_pb2, schedule_pb2, status_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)


def serve(config: RuntimeConfig) -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain.

    Raises InvalidInputError for an address it must not listen at, ConflictError when another
    daemon is there.
    """
    address = parse_address(config.address)
    loop_factory = _loop_factory(config.event_loop)
    with _claim(address):
        os.umask(0o077)  # the socket is for this user only
        warm_up()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(Daemon(config, address).run())


def warm_up() -> None:
    """Compile the kernels, or load them from the cache, before anybody waits for a plan."""
    policies.warm_up()
    packing.warm_up()
    step_homes.warm_up()
    for dtype in ID_DTYPES:  # what arrives on the wire is read-only, another type to numba
        ids = np.zeros((1, 1, 1), dtype)
        ids.setflags(write=False)
        expert_histogram(ids, 1)


class Daemon:
    """The server, the services and the coordinator behind them, on one event loop."""

    def __init__(self, config: RuntimeConfig, address: Address) -> None:
        self._config = config
        self._address = address

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        pool = PlanningPool(
            policies.POLICIES[self._config.policy],
            self._config.planning_workers,
            loop.call_soon_threadsafe,
        )
        published = Signal()

        def start_planning(job: PlanningJob) -> None:
            pool.start(job, coordinator)

        coordinator = Coordinator(self._config, start_planning, published.notify)
        boundary = Boundary()
        ranks = RankService(coordinator, published)
        side_port = self._open_side_port(coordinator, boundary)
        server, health_service = await self._start_server(boundary, coordinator, ranks, pool)
        log.info(
            "serving at %s, pid %d, policy %s, %s",
            self._address.target,
            os.getpid(),
            self._config.policy,
            type(loop).__module__.partition(".")[0],
        )
        await stop.wait()
        log.info("draining for at most %.1f s", self._config.drain_seconds)
        await health_service.enter_graceful_shutdown()
        boundary.draining = True
        ranks.end_streams()
        if not await boundary.wait_idle(self._config.drain_seconds):
            log.warning("calls were still running after the drain; they are cancelled")
        await server.stop(LAST_GRACE_SECONDS)
        for step in list(coordinator.steps):
            coordinator.release_step(step)
        pool.close()
        if side_port is not None:
            await asyncio.to_thread(side_port.close)
        log.info("stopped")

    def _open_side_port(self, coordinator: Coordinator, boundary: Boundary) -> SidePort | None:
        if self._config.metrics_port is None:
            return None
        loop = asyncio.get_running_loop()

        async def snapshot() -> Snapshot:
            return Snapshot(
                coordinator.status(),
                coordinator.totals(),
                dict(boundary.ended),
                boundary.running,
                boundary.draining,
            )

        host = self._config.metrics_host
        side_port = SidePort(
            host,
            self._config.metrics_port,
            lambda: asyncio.run_coroutine_threadsafe(snapshot(), loop),
        )
        log.info("metrics at http://%s", TcpAddress(host, side_port.port).target)
        if not _is_loopback(host):
            log.warning("metrics are open, in clear text, to all who can reach %s", host)
        return side_port

    async def _start_server(
        self, boundary: Boundary, coordinator: Coordinator, ranks: RankService, pool: PlanningPool
    ) -> tuple[grpc.aio.Server, health.HealthServicer]:
        server = grpc.aio.server(
            interceptors=[boundary],
            options=[("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        add_ForesightServiceServicer_to_server(ForesightService(coordinator), server)
        add_ScheduleServiceServicer_to_server(ScheduleService(coordinator, pool), server)
        add_RankServiceServicer_to_server(ranks, server)
        add_StatusServiceServicer_to_server(StatusService(coordinator), server)
        health_service = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        for name in SERVICES:
            await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            server.add_insecure_port(self._address.target)
        except RuntimeError:
            raise ConflictError(
                f"cannot listen at {self._address.target}; is another program there?"
            ) from None
        await server.start()
        return server, health_service


def _claim(address: Address) -> AbstractContextManager[None]:
    """The right to listen at the address; refuses what would let strangers in."""
    if isinstance(address, UnixAddress):
        return hold_socket(Path(address.path))
    if not _is_loopback(address.host):
        raise InvalidInputError(
            f"refusing to listen at {address.target} without TLS: others could reach it; "
            "use --socket PATH, or --listen with a loopback address such as 127.0.0.1"
        )
    return nullcontext()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    installed = importlib.util.find_spec("uvloop") is not None
    if name == "uvloop" and not installed:
        raise InvalidInputError(
            "event_loop: uvloop is not installed; pip install uvloop, or take asyncio"
        )
    if name == "asyncio" or not installed:
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop
