"""Uploads foresight sequence by sequence from an asyncio program."""

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from foremoe.client.upload_messages import UploadMessages
from foremoe.errors import ForemoeError, UnavailableError
from foremoe.foresight.routing import Routing
from foremoe.rpc.address import Address
from foremoe.rpc.codes import local_error
from foremoe.rpc.foresight import UploadHeader
from foremoe.rpc.v1.foresight_pb2 import UploadForesightRequest
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub


class AsyncForesightStream:
    """One upload: ``await add(...)`` each finished sequence; leaving the block commits.

    An exception inside the block, a cancelled task or a lost daemon leave the daemon as it was. Not
    for use by several tasks at once; each may have a stream of its own.
    """

    def __init__(
        self,
        stub: ForesightServiceStub,
        address: Address,
        header: UploadHeader,
        timeout_seconds: float,
        send_ids: bool,
    ) -> None:
        self.sequences_added = 0
        self.sequences_known = 0
        self._stub = stub
        self._address = address
        self._upload = UploadMessages(header, send_ids)
        self._timeout_seconds = timeout_seconds
        self._call: Any = None

    async def __aenter__(self) -> Self:
        self._call = self._stub.UploadForesight()
        await self._send(self._upload.header())
        return self

    async def add(
        self,
        sequence_id: str,
        *,
        histogram: NDArray[np.uint32] | None = None,
        expert_ids: NDArray[Any] | None = None,
        routing: Routing | None = None,
    ) -> None:
        """Send one sequence, or more tokens of it, as ``ForesightStream.add`` does.

        Ids are counted in a thread, without the GIL; the event loop goes on meanwhile.
        """
        chunks = await asyncio.to_thread(
            self._upload.chunks, sequence_id, histogram, expert_ids, routing
        )
        for message in chunks:
            await self._send(message)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._call.cancel()
            return
        await self._send(self._upload.commit())
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._call.done_writing()
                response = await self._call
        except TimeoutError:
            self._call.cancel()
            raise UnavailableError(
                f"the runtime at {self._address.target} did not answer in "
                f"{self._timeout_seconds} s; whether the upload was kept is not known, "
                "sending it again is safe"
            ) from None
        except grpc.RpcError as failure:
            raise local_error(failure, self._address) from None
        self.sequences_added = response.sequences_added
        self.sequences_known = response.sequences_known

    async def _send(self, message: UploadForesightRequest) -> None:
        """Write a message; raises what the daemon answered if it has ended the call.

        Raises UnavailableError when the daemon takes nothing for the stream's timeout.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._call.write(message)
        except TimeoutError:
            self._call.cancel()
            raise UnavailableError(
                f"the runtime at {self._address.target} took nothing for "
                f"{self._timeout_seconds} s; nothing of the upload was kept, send it again"
            ) from None
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise await self._answer() from None

    async def _answer(self) -> ForemoeError:
        """The error with which the daemon ended the call."""
        try:
            await self._call
        except grpc.RpcError as failure:
            return local_error(failure, self._address)
        return UnavailableError(f"the runtime at {self._address.target} ended the upload early")
