"""Uploads foresight sequence by sequence, while the rollout goes on."""

import contextlib
import queue
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from foremoe.client.upload_messages import UploadMessages
from foremoe.errors import UnavailableError
from foremoe.foresight.routing import Routing
from foremoe.rpc.address import Address
from foremoe.rpc.codes import local_error
from foremoe.rpc.foresight import UploadHeader
from foremoe.rpc.v1.foresight_pb2 import UploadForesightRequest
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub

QUEUED_CHUNKS = 64
_LOOK_AGAIN_SECONDS = 0.1


class ForesightStream:
    """One upload: ``add`` each finished sequence; leaving the ``with`` block commits.

    An exception inside the block, or a lost daemon, leaves the daemon as it was. Not for use by
    several threads at once.
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
        self._messages: queue.Queue[UploadForesightRequest | None] = queue.Queue(QUEUED_CHUNKS)
        self._call: Any = None
        self._aborted = False

    def __enter__(self) -> Self:
        self._call = self._stub.UploadForesight.future(self._take_messages())
        self._put(self._upload.header())
        return self

    def add(
        self,
        sequence_id: str,
        *,
        histogram: NDArray[np.uint32] | None = None,
        expert_ids: NDArray[Any] | None = None,
        routing: Routing | None = None,
    ) -> None:
        """Send one sequence, or more tokens of it: exactly one of the three.

        histogram: uint32 ``[L, E]``, (token, expert) pairs, the same sum in every layer.
        expert_ids: uint8, uint16 or int32 ``[tokens, L, top_k]``.
        routing: as a decoder of ``foremoe.foresight`` gives it; the header's layers of the rows
            that count are sent.

        Raises InvalidInputError when it does not fit the header, or one of the header's layers was
        not captured; the stream can go on without it. Raises what the daemon answered when it has
        refused the upload.
        """
        for message in self._upload.chunks(sequence_id, histogram, expert_ids, routing):
            self._put(message)

    def abort(self) -> None:
        """End the call, from any thread: the daemon keeps nothing of it."""
        self._call.cancel()
        self._aborted = True
        with contextlib.suppress(queue.Full):  # when full, the sender looks at the flag next
            self._messages.put_nowait(None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.abort()
            return
        self._put(self._upload.commit())
        self._put(None)
        try:
            response = self._call.result(timeout=self._timeout_seconds)
        except grpc.FutureTimeoutError:
            self.abort()
            raise UnavailableError(
                f"the runtime at {self._address.target} did not answer in "
                f"{self._timeout_seconds} s; whether the upload was kept is not known, "
                "sending it again is safe"
            ) from None
        except grpc.FutureCancelledError:
            raise self._aborted_error() from None
        except grpc.RpcError as failure:
            raise local_error(failure, self._address) from None
        self.sequences_added = response.sequences_added
        self.sequences_known = response.sequences_known

    def _put(self, message: UploadForesightRequest | None) -> None:
        """Queue a message; raises what the daemon answered if it has ended the call.

        Raises UnavailableError when the daemon takes nothing for the stream's timeout.
        """
        deadline = time.monotonic() + self._timeout_seconds
        while time.monotonic() < deadline:
            if self._call.done():
                if message is None:
                    return
                self._raise_answer()
            try:
                self._messages.put(message, timeout=_LOOK_AGAIN_SECONDS)
            except queue.Full:
                continue
            return
        self.abort()
        raise UnavailableError(
            f"the runtime at {self._address.target} took nothing for {self._timeout_seconds} s; "
            "nothing of the upload was kept, send it again"
        )

    def _raise_answer(self) -> None:
        try:
            self._call.result(timeout=0)
        except grpc.FutureCancelledError:
            raise self._aborted_error() from None
        except grpc.RpcError as failure:
            raise local_error(failure, self._address) from None
        finally:
            self.abort()

    def _aborted_error(self) -> UnavailableError:
        return UnavailableError(
            f"the upload to {self._address.target} was ended before; nothing of it was kept, "
            "send it again"
        )

    def _take_messages(self) -> Iterator[UploadForesightRequest]:
        while (message := self._messages.get()) is not None and not self._aborted:
            yield message
