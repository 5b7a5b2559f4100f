"""The edge between gRPC and the daemon: errors become status codes, and nothing else leaks out."""

import asyncio
import inspect
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from foremoe.errors import ForemoeError, InvalidInputError, UnavailableError
from foremoe.rpc.codes import CODES
from foremoe.rpc.protocol import check_spoken
from foremoe.runtime.access import Access

log = logging.getLogger(__name__)

NO_MEMORY = (
    "the daemon got no memory for this request; release steps that are done, or give its node more"
)
DETAIL_CHARACTERS = 1000  # gRPC sends the text as metadata, which has a small limit

_HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a message that is not protobuf of its type."""

    reason: str


class Boundary(grpc.aio.ServerInterceptor):
    """Guards every call; refuses calls to ForeMoE's services without access, or while draining.

    running, ended: calls to ForeMoE's services; the latter by service, method and status code.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self.draining = False
        self.ended: Counter[tuple[str, str, str]] = Counter()
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self, timeout_seconds: float) -> bool:
        """Whether the running calls to ForeMoE's services ended in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        except TimeoutError:
            return False
        return True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        behavior = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        method = details.method
        service, _, name = method.removeprefix("/").partition("/")
        ours = service.startswith("foremoe.")

        async def guarded(request: Any, context: Any) -> Any:
            if ours:
                self._enter()
            code = grpc.StatusCode.CANCELLED
            try:
                try:
                    if ours:
                        self._admit(details, context)
                    response = await _run(behavior, _checked(request, context), context)
                    code = grpc.StatusCode.OK
                    return response
                except grpc.aio.AbortError:
                    raise
                except Exception as error:  # noqa: BLE001 - a bug must not tell what it was
                    code, text = _refusal(error, method)
                # gRPC keeps what abort raises in a cycle, until the collector comes. So it is not
                # raised while the error is handled, whose frames hold the request and all made of
                # it: refused uploads would pile up outside of the budget.
                request = None
                await context.abort(code, text)
            finally:
                if ours:
                    self.ended[service, name, code.name] += 1
                    self._leave()

        make_handler = _HANDLERS[handler.request_streaming, handler.response_streaming]
        return make_handler(
            guarded, _lenient(handler.request_deserializer), handler.response_serializer
        )

    def _admit(self, details: grpc.HandlerCallDetails, context: Any) -> None:
        self._access.check_names(context.auth_context())
        self._access.check_token(details.invocation_metadata)
        check_spoken(details.invocation_metadata)
        if self.draining:
            raise UnavailableError("the runtime is draining; try again when it is back")

    def _enter(self) -> None:
        self.running += 1
        self._idle.clear()

    def _leave(self) -> None:
        self.running -= 1
        if self.running == 0:
            self._idle.set()


def _refusal(error: Exception, method: str) -> tuple[grpc.StatusCode, str]:
    """What a client is told of an error; only our own speak for themselves."""
    if isinstance(error, ForemoeError):
        code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
        return code, str(error)[:DETAIL_CHARACTERS]
    if isinstance(error, MemoryError):
        log.warning("no memory for %s", method)
        return grpc.StatusCode.RESOURCE_EXHAUSTED, NO_MEMORY
    fault = uuid.uuid4().hex[:12]
    log.error("internal error %s in %s", fault, method, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error {fault}; see the daemon's log"


def _lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """gRPC answers UNKNOWN with the parser's text when this raises; so it must not."""

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return Malformed(str(error))

    return parse


def _checked(request: Any, context: Any) -> Any:
    return _CheckedStream(context) if hasattr(request, "__aiter__") else _valid(request)


def _valid(request: Any) -> Any:
    if isinstance(request, Malformed):
        raise InvalidInputError(f"the request is not a valid message: {request.reason}")
    return request


class _CheckedStream:
    """The messages of a call; gRPC's own iterator holds each one until the next has come."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __aiter__(self) -> "_CheckedStream":
        return self

    async def __anext__(self) -> Any:
        request = await self._context.read()
        if request is grpc.aio.EOF:
            raise StopAsyncIteration
        return _valid(request)


async def _run(behavior: Callable[[Any, Any], Any], request: Any, context: Any) -> Any:
    if not inspect.isasyncgenfunction(behavior):
        return await behavior(request, context)
    async for response in behavior(request, context):
        await context.write(response)
    return None
