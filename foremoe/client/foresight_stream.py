"""Uploads foresight sequence by sequence, while the rollout goes on."""

import contextlib
import queue
import time
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError, UnavailableError
from foremoe.foresight.histogram import ID_DTYPES, expert_histogram
from foremoe.foresight.routing import Routing
from foremoe.rpc.address import Address
from foremoe.rpc.arrays import encode_array
from foremoe.rpc.codes import local_error
from foremoe.rpc.foresight import MAX_TOKENS, UploadHeader, check_histogram
from foremoe.rpc.limits import UPLOAD_MESSAGE_BYTES, check_name, check_range
from foremoe.rpc.v1.array_pb2 import Array
from foremoe.rpc.v1.foresight_pb2 import (
    ForesightChunk,
    ForesightCommit,
    ForesightHeader,
    UploadForesightRequest,
)
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub

QUEUED_CHUNKS = 64
CHUNK_BYTES = UPLOAD_MESSAGE_BYTES - 4096  # leaves room for the id and the framing
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
        self._header = header
        self._timeout_seconds = timeout_seconds
        self._send_ids = send_ids
        self._messages: queue.Queue[UploadForesightRequest | None] = queue.Queue(QUEUED_CHUNKS)
        self._call: Any = None
        self._aborted = False
        self._chunks = 0
        self._payload_bytes = 0
        self._crc32 = 0

    def __enter__(self) -> Self:
        header = self._header
        self._call = self._stub.UploadForesight.future(self._take_messages())
        self._put(
            UploadForesightRequest(
                header=ForesightHeader(
                    step=header.step,
                    layers=header.layers,
                    num_experts=header.num_experts,
                    top_k=header.top_k,
                )
            )
        )
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
        check_name(sequence_id, "sequence_id")
        if sum(given is not None for given in (histogram, expert_ids, routing)) != 1:
            raise InvalidInputError("give one of histogram, expert_ids and routing")
        if routing is not None:
            expert_ids = self._captured_ids(routing)
        if expert_ids is not None:
            self._add_ids(sequence_id, expert_ids)
        elif histogram is not None:
            self._add_histogram(sequence_id, histogram)

    def _captured_ids(self, routing: Routing) -> NDArray[Any]:
        """Ids of the rows that count, in the header's layers."""
        if routing.num_experts != self._header.num_experts:
            raise InvalidInputError(
                f"routing of sequence {routing.sequence!r}: is of a model with "
                f"{routing.num_experts} experts, the header says {self._header.num_experts}"
            )
        captured = routing.select(self._header.layers)
        captured.check_captured()
        return captured.present_ids()

    def _add_ids(self, sequence_id: str, ids: NDArray[Any]) -> None:
        header = self._header
        expected = (len(ids) if ids.ndim else 0, len(header.layers), header.top_k)
        if ids.shape != expected or ids.dtype not in ID_DTYPES or len(ids) == 0:
            raise InvalidInputError(
                f"expert_ids of sequence {sequence_id!r}: expected uint8, uint16 or int32 "
                f"[at least 1 token, {len(header.layers)}, {header.top_k}], "
                f"got {ids.dtype} {list(ids.shape)}"
            )
        check_range(len(ids), 1, MAX_TOKENS, f"sequence {sequence_id!r}: tokens")
        if not self._send_ids:
            counts = expert_histogram(ids, header.num_experts)
            self._send(sequence_id, len(ids), counts, "histogram")
            return
        if int(ids.min()) < 0 or int(ids.max()) >= header.num_experts:
            raise InvalidInputError(
                f"expert_ids of sequence {sequence_id!r}: ids must lie in "
                f"[0, {header.num_experts}), got {int(ids.min())} to {int(ids.max())}"
            )
        piece = max(CHUNK_BYTES // (ids[0].nbytes), 1)
        for begin in range(0, len(ids), piece):
            part = ids[begin : begin + piece]
            self._send(sequence_id, len(part), part, "expert_ids")

    def _add_histogram(self, sequence_id: str, histogram: NDArray[np.uint32]) -> None:
        header, field = self._header, f"histogram of sequence {sequence_id!r}"
        expected = (len(header.layers), header.num_experts)
        if histogram.shape != expected or histogram.dtype != np.uint32:
            raise InvalidInputError(
                f"{field}: expected uint32 {list(expected)}, "
                f"got {histogram.dtype} {list(histogram.shape)}"
            )
        tokens = int(histogram[0].sum(dtype=np.int64)) // header.top_k
        check_range(tokens, 1, MAX_TOKENS, f"{field}: tokens")
        check_histogram(histogram, tokens, header, field)
        self._send(sequence_id, tokens, histogram, "histogram")

    def _send(self, sequence_id: str, tokens: int, array: NDArray[Any], kind: str) -> None:
        message: Array = encode_array(array)
        chunk = ForesightChunk(sequence_id=sequence_id, tokens=tokens)
        getattr(chunk, kind).CopyFrom(message)
        self._put(UploadForesightRequest(chunk=chunk))
        self._chunks += 1
        self._payload_bytes += array.nbytes
        self._crc32 = zlib.crc32(message.data, self._crc32)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._abort()
            return
        commit = ForesightCommit(
            chunks=self._chunks, payload_bytes=self._payload_bytes, crc32=self._crc32
        )
        self._put(UploadForesightRequest(commit=commit))
        self._put(None)
        try:
            response = self._call.result(timeout=self._timeout_seconds)
        except grpc.FutureTimeoutError:
            self._abort()
            raise UnavailableError(
                f"the runtime at {self._address.target} did not answer in "
                f"{self._timeout_seconds} s; whether the upload was kept is not known, "
                "sending it again is safe"
            ) from None
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
        self._abort()
        raise UnavailableError(
            f"the runtime at {self._address.target} took nothing for {self._timeout_seconds} s; "
            "nothing of the upload was kept, send it again"
        )

    def _raise_answer(self) -> None:
        try:
            self._call.result(timeout=0)
        except grpc.RpcError as failure:
            raise local_error(failure, self._address) from None
        finally:
            self._abort()

    def _abort(self) -> None:
        """End the call; the sender's thread ends with it."""
        self._call.cancel()
        self._aborted = True
        with contextlib.suppress(queue.Full):  # when full, the sender looks at the flag next
            self._messages.put_nowait(None)

    def _take_messages(self) -> Iterator[UploadForesightRequest]:
        while (message := self._messages.get()) is not None and not self._aborted:
            yield message
