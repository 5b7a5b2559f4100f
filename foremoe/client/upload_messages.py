"""The messages of one upload of foresight; sync and async streams send them."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.histogram import ID_DTYPES, expert_histogram
from foremoe.foresight.routing import Routing
from foremoe.limits import check_name, check_range
from foremoe.rpc.arrays import encode_array
from foremoe.rpc.foresight import MAX_TOKENS, UploadHeader, check_histogram
from foremoe.rpc.v1.array_pb2 import Array
from foremoe.rpc.v1.foresight_pb2 import (
    ForesightChunk,
    ForesightCommit,
    ForesightHeader,
    UploadForesightRequest,
)

IDS_BYTES = 128 << 10  # of a message: other clients of the daemon wait for as long as one takes


class UploadMessages:
    """Encodes header, chunks and commit, and keeps the counts that the commit must match.

    Every message that ``chunks`` yields must be sent, in order.
    """

    def __init__(self, header: UploadHeader, send_ids: bool) -> None:
        self._header = header
        self._send_ids = send_ids
        self._chunks = 0
        self._payload_bytes = 0
        self._crc32 = 0

    def header(self) -> UploadForesightRequest:
        """The first message."""
        return UploadForesightRequest(
            header=ForesightHeader(
                step=self._header.step,
                layers=self._header.layers,
                num_experts=self._header.num_experts,
                top_k=self._header.top_k,
            )
        )

    def commit(self) -> UploadForesightRequest:
        """The last message."""
        return UploadForesightRequest(
            commit=ForesightCommit(
                chunks=self._chunks, payload_bytes=self._payload_bytes, crc32=self._crc32
            )
        )

    def chunks(
        self,
        sequence_id: str,
        histogram: NDArray[np.uint32] | None,
        expert_ids: NDArray[Any] | None,
        routing: Routing | None,
    ) -> Iterator[UploadForesightRequest]:
        """One sequence, as ``ForesightStream.add`` takes it.

        Raises InvalidInputError, before the first message, when it does not fit the header.
        """
        check_name(sequence_id, "sequence_id")
        if sum(given is not None for given in (histogram, expert_ids, routing)) != 1:
            raise InvalidInputError("give one of histogram, expert_ids and routing")
        if routing is not None:
            expert_ids = self._captured_ids(routing)
        if expert_ids is not None:
            return self._of_ids(sequence_id, expert_ids)
        assert histogram is not None
        return self._of_histogram(sequence_id, histogram)

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

    def _of_ids(self, sequence_id: str, ids: NDArray[Any]) -> Iterator[UploadForesightRequest]:
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
            return iter([self._chunk(sequence_id, len(ids), counts, "histogram")])
        if int(ids.min()) < 0 or int(ids.max()) >= header.num_experts:
            raise InvalidInputError(
                f"expert_ids of sequence {sequence_id!r}: ids must lie in "
                f"[0, {header.num_experts}), got {int(ids.min())} to {int(ids.max())}"
            )
        piece = max(IDS_BYTES // ids[0].nbytes, 1)
        parts = (ids[begin : begin + piece] for begin in range(0, len(ids), piece))
        return (self._chunk(sequence_id, len(part), part, "expert_ids") for part in parts)

    def _of_histogram(
        self, sequence_id: str, histogram: NDArray[np.uint32]
    ) -> Iterator[UploadForesightRequest]:
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
        return iter([self._chunk(sequence_id, tokens, histogram, "histogram")])

    def _chunk(
        self, sequence_id: str, tokens: int, array: NDArray[Any], kind: str
    ) -> UploadForesightRequest:
        message: Array = encode_array(array)
        chunk = ForesightChunk(sequence_id=sequence_id, tokens=tokens)
        getattr(chunk, kind).CopyFrom(message)
        self._chunks += 1
        self._payload_bytes += array.nbytes
        self._crc32 = zlib.crc32(message.data, self._crc32)
        return UploadForesightRequest(chunk=chunk)
