"""A daemon that relays: its node's ranks talk to it, and it hands every call on to the leader.

Messages pass through as bytes and one at a time: nothing is kept here, a slow reader slows its own
stream only, and whatever the leader refuses is refused here in the same words. Without the leader
calls fail at once, and the ranks go on unbalanced until their clients find it again through here.
"""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from foremoe import __version__
from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import (
    ForemoeError,
    InvalidInputError,
    LeaderLostError,
    UnauthenticatedError,
    UnavailableError,
)
from foremoe.rpc.address import parse_address
from foremoe.rpc.channel import open_async_channel
from foremoe.rpc.codes import daemon_error
from foremoe.rpc.protocol import RELAYED, spoken_by
from foremoe.rpc.status import RuntimeStatus
from foremoe.rpc.v1 import foresight_pb2, rank_pb2, schedule_pb2, status_pb2
from foremoe.runtime.boundary import Boundary
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.metrics import Snapshot

log = logging.getLogger(__name__)

SERVICES = tuple(
    service
    for module in (foresight_pb2, rank_pb2, schedule_pb2, status_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
_METHODS = {
    f"/{service.full_name}/{method.name}": (method.client_streaming, method.server_streaming)
    for service in SERVICES
    for method in service.methods
}
_LOST = "the leader does not answer; plans come again when it is back"
_LOOK_AGAIN_SECONDS = 0.5
_Metadata = tuple[tuple[str, str], ...]
_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


class Follower(grpc.GenericRpcHandler):
    """One channel to the leader, and every call of ForeMoE's services through it."""

    def __init__(self, config: RuntimeConfig) -> None:
        assert config.join is not None
        self._address = parse_address(config.join)
        self._credentials = config.credentials
        self._stamp = self._credentials.stamp()
        self._channel = open_async_channel(self._address, self._credentials)
        self._connected = False
        self._draining = False
        self._refused = False
        self._streams: set[Any] = set()
        self._id = uuid.uuid4().hex
        self._started = time.monotonic()
        self._watching = asyncio.create_task(self._watch())

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have ``server`` relay ForeMoE's services."""
        server.add_generic_rpc_handlers((self,))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method, as gRPC asks for it."""
        method = handler_call_details.method
        if method not in _METHODS:
            return None
        metadata = handler_call_details.invocation_metadata
        relayed = any(key == RELAYED for key, _ in metadata)
        oldest, newest = spoken_by(metadata)
        passed_on = ((RELAYED, f"{oldest}-{newest}"),)
        make_handler, relay = {
            (False, False): (grpc.unary_unary_rpc_method_handler, self._relay_unary),
            (True, False): (grpc.stream_unary_rpc_method_handler, self._relay_upload),
            (False, True): (grpc.unary_stream_rpc_method_handler, self._relay_stream),
        }[_METHODS[method]]

        async def handle(request: Any, context: Any) -> bytes | None:
            if relayed:
                raise LeaderLostError("the leader is itself a follower; join the leader")
            try:
                return await relay(method, request, context, passed_on)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    await self._renew_channel()
                raise self._relayed_error(error) from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # the caller has gone
                raise LeaderLostError(_LOST) from None

        return make_handler(handle, request_deserializer=_as_is)

    def snapshot(self, boundary: Boundary) -> Snapshot:
        """What there is to show now: the groups and steps are the leader's to show."""
        status = RuntimeStatus(
            __version__, self._id, os.getpid(), time.monotonic() - self._started, 0, 0, (), ()
        )
        return Snapshot(
            status,
            {},
            dict(boundary.ended),
            boundary.running,
            boundary.draining,
            self._connected,
        )

    def end_streams(self) -> None:
        """End every plan stream; the ranks' clients look for the next daemon by themselves."""
        self._draining = True
        for stream in self._streams:
            stream.cancel()

    async def close(self) -> None:
        """Leave the leader."""
        self._watching.cancel()
        await self._channel.close()

    async def _relay_unary(
        self, method: str, request: bytes, context: Any, metadata: _Metadata
    ) -> bytes:
        call: Callable[..., Awaitable[bytes]] = self._channel.unary_unary(method)
        crash_point(CrashPoint.RELAYING_CALL)
        return await call(request, timeout=context.time_remaining(), metadata=metadata)

    async def _relay_upload(
        self, method: str, requests: Any, context: Any, metadata: _Metadata
    ) -> bytes:
        call: Callable[..., Awaitable[bytes]] = self._channel.stream_unary(method)
        crash_point(CrashPoint.RELAYING_UPLOAD)
        return await call(requests, timeout=context.time_remaining(), metadata=metadata)

    async def _relay_stream(
        self, method: str, request: bytes, context: Any, metadata: _Metadata
    ) -> None:
        call: Any = self._channel.unary_stream(method)
        stream = call(request, metadata=metadata)
        self._streams.add(stream)
        try:
            async for message in stream:
                crash_point(CrashPoint.RELAYING_PLAN)
                await context.write(message)
        except asyncio.CancelledError:
            if not self._draining:
                raise
        finally:
            self._streams.discard(stream)
            stream.cancel()

    def _relayed_error(self, error: grpc.aio.AioRpcError) -> ForemoeError:
        known = daemon_error(error)
        if isinstance(known, UnauthenticatedError):  # nothing that the rank could mend
            if not self._refused:
                log.error("the leader refuses this daemon: %s", known)
            self._refused = True
            return LeaderLostError(f"the leader refuses the daemon of this node: {known}")
        self._refused = False
        if known is None and error.code() not in _NO_ANSWER:
            return ForemoeError(f"the leader failed ({error.code().name}): {error.details()}")
        if known is None:
            return LeaderLostError(_LOST)
        if type(known) is UnavailableError:
            return LeaderLostError(f"the leader is going: {known}")
        return known

    async def _watch(self) -> None:
        """Keep the channel connected, say when that changes, and take new credentials up."""
        while True:
            channel = self._channel
            state = channel.get_state(try_to_connect=True)
            connected = state is grpc.ChannelConnectivity.READY
            if connected != self._connected:
                self._connected = connected
                crash_point(CrashPoint.LEADER_FOUND)
                log.log(
                    logging.INFO if connected else logging.WARNING,
                    "leader %s at %s",
                    "found" if connected else "lost: ranks go on unbalanced; still looking for it",
                    self._address.target,
                )
            if connected:
                await channel.wait_for_state_change(state)
            else:  # one failed attempt looks like the next
                await self._renew_channel()
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def _renew_channel(self) -> None:
        """A channel shows the files it was opened with; open another one if they have changed."""
        stamp = self._credentials.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            channel = open_async_channel(self._address, self._credentials)
        except InvalidInputError as error:
            log.warning("the leader is asked with the credentials read before: %s", error)
            return
        before, self._channel = self._channel, channel
        await before.close()
        log.info("the leader is asked with the credentials as they are now")


def _as_is(data: bytes) -> bytes:
    return data
