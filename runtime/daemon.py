"""The daemon process: listens, serves until it is told to stop, and drains."""

import asyncio
import gc
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import ConflictError, InvalidInputError
from foremoe.foresight.histogram import ID_DTYPES, expert_histogram
from foremoe.planner import order, packing, policies, step_homes
from foremoe.rpc.address import Address, TcpAddress, UnixAddress, parse_address
from foremoe.rpc.channel import KEEPALIVE_SECONDS
from foremoe.runtime.access import Access
from foremoe.runtime.boundary import Boundary
from foremoe.runtime.certificates import ServerCertificate
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.follower import SERVICES, Follower
from foremoe.runtime.leader import Leader
from foremoe.runtime.lock import hold_socket
from foremoe.runtime.metrics import Snapshot
from foremoe.runtime.side_port import SidePort

log = logging.getLogger(__name__)

MAX_CONCURRENT_CALLS = 4096
LAST_GRACE_SECONDS = 0.2
SWITCH_SECONDS = 0.0005  # a thread that plans gives way to the event loop ten times sooner
SILENT_PEER_SECONDS = 30
GREETING_SECONDS = 5  # who has connected and says nothing keeps a descriptor from others
_SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", GREETING_SECONDS * 1000),
    # Followers ask whether we are there (rpc.channel); a peer without a word is given up.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", SILENT_PEER_SECONDS * 500),
    ("grpc.keepalive_timeout_ms", SILENT_PEER_SECONDS * 500),
    ("grpc.http2.ping_timeout_ms", SILENT_PEER_SECONDS * 500),
)


def serve(config: RuntimeConfig) -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain.

    Raises InvalidInputError for an address it must not listen at and for credentials it cannot use,
    ConflictError when another daemon is there.
    """
    addresses = _addresses(config)
    loop_factory = _loop_factory(config.event_loop)
    with ExitStack() as claims:
        for address in addresses:
            if isinstance(address, UnixAddress):
                claims.enter_context(hold_socket(Path(address.path)))
        os.umask(0o077)  # the socket is for this user only
        if config.join is None:
            warm_up(config.policy)
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.freeze()  # a look at all that numba holds takes longer than anybody should wait
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(Daemon(config, addresses).run())


def warm_up(policy: str) -> None:
    """Compile the kernels, or load them from the cache, before anybody waits for a plan."""
    log.info("preparing the planner's kernels; the first time after an installation takes a while")
    policies.warm_up([policy])
    packing.warm_up()
    order.warm_up()
    step_homes.warm_up()
    for dtype in ID_DTYPES:  # what arrives on the wire is read-only, another type to numba
        ids = np.zeros((1, 1, 1), dtype)
        ids.setflags(write=False)
        expert_histogram(ids, 1)


class Daemon:
    """The server, and the leader or follower behind it, on one event loop."""

    def __init__(self, config: RuntimeConfig, addresses: Sequence[Address]) -> None:
        self._config = config
        self._addresses = addresses

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        credentials = self._config.credentials
        boundary = Boundary(Access(credentials.read_token(), self._config.allowed_names))
        node = Leader(self._config) if self._config.join is None else Follower(self._config)
        side_port = self._open_side_port(lambda: node.snapshot(boundary))
        server, health_service = await self._start_server(boundary, node)
        log.info(
            "serving at %s, pid %d, %s, %s",
            " and ".join(address.target for address in self._addresses),
            os.getpid(),
            self._config.summary(),
            type(loop).__module__.partition(".")[0],
        )
        await stop.wait()
        log.info("draining for at most %.1f s", self._config.drain_seconds)
        await health_service.enter_graceful_shutdown()
        boundary.draining = True
        crash_point(CrashPoint.DRAINING)
        node.end_streams()
        if not await boundary.wait_idle(self._config.drain_seconds):
            log.warning("calls were still running after the drain; they are cancelled")
        await server.stop(LAST_GRACE_SECONDS)
        await node.close()
        if side_port is not None:
            await asyncio.to_thread(side_port.close)
        log.info("stopped")

    def _open_side_port(self, look: Callable[[], Snapshot]) -> SidePort | None:
        if self._config.metrics_port is None:
            return None
        loop = asyncio.get_running_loop()

        async def snapshot() -> Snapshot:
            return look()

        host = self._config.metrics_host
        side_port = SidePort(
            host,
            self._config.metrics_port,
            lambda: asyncio.run_coroutine_threadsafe(snapshot(), loop),
        )
        log.info("metrics at http://%s", TcpAddress(host, side_port.port).target)
        if not TcpAddress(host, 0).is_loopback:
            log.warning("metrics are open, in clear text, to all who can reach %s", host)
        return side_port

    async def _start_server(
        self, boundary: Boundary, node: Leader | Follower
    ) -> tuple[grpc.aio.Server, health.HealthServicer]:
        server = grpc.aio.server(
            interceptors=[boundary],
            options=_SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        node.add_to(server)
        health_service = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        for service in SERVICES:
            await health_service.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)
        described = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"])
        names = [service.full_name for service in described]
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        for address in self._addresses:
            try:
                self._add_port(server, address)
            except RuntimeError:
                raise ConflictError(
                    f"cannot listen at {address.target}; is another program there?"
                ) from None
        await server.start()
        crash_point(CrashPoint.LISTENING)
        return server, health_service

    def _add_port(self, server: grpc.aio.Server, address: Address) -> None:
        pem = self._config.credentials.read_tls()
        if isinstance(address, UnixAddress) or pem is None:
            server.add_insecure_port(address.target)
        else:
            certificate = ServerCertificate(self._config.credentials, pem)
            server.add_secure_port(address.target, certificate.server_credentials())


def _addresses(config: RuntimeConfig) -> tuple[Address, ...]:
    """Where the daemon listens; refuses what would let strangers in."""
    given = [config.address] if config.also_listen is None else [config.address, config.also_listen]
    addresses = tuple(parse_address(text) for text in given)
    for address in addresses:
        if isinstance(address, UnixAddress) or config.credentials.has_tls:
            continue
        if not address.is_loopback:
            raise InvalidInputError(
                f"refusing to listen at {address.target} without TLS: others could reach it; give "
                "--tls-cert, --tls-key and --tls-ca, or use --socket PATH or a loopback address "
                "such as 127.0.0.1"
            )
        if config.credentials.token_file:
            raise InvalidInputError(
                f"refusing to take tokens in clear text at {address.target}; use --socket PATH, or "
                "give --tls-cert, --tls-key and --tls-ca"
            )
    return addresses


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
