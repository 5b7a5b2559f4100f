"""Raw upload messages for tests, right unless a test bends them."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from foremoe.rpc.arrays import encode_array
from foremoe.rpc.v1.foresight_pb2 import (
    ForesightChunk,
    ForesightCommit,
    ForesightHeader,
    UploadForesightRequest,
)

LAYERS = (0, 2)
EXPERTS = 4
TOP_K = 2


def histogram(*tokens: int) -> NDArray[np.uint32]:
    """uint32 ``[2 layers, 4 experts]`` of a sequence whose pairs per expert are ``tokens``."""
    return np.array([tokens, tokens[::-1]], np.uint32)


def header(step: int, **fields: object) -> UploadForesightRequest:
    values = {"layers": LAYERS, "num_experts": EXPERTS, "top_k": TOP_K, **fields}
    return UploadForesightRequest(header=ForesightHeader(step=step, **values))  # type: ignore[arg-type]


def chunk(sequence_id: str, counts: NDArray[np.uint32]) -> UploadForesightRequest:
    tokens = int(counts[0].sum()) // TOP_K
    return UploadForesightRequest(
        chunk=ForesightChunk(sequence_id=sequence_id, tokens=tokens, histogram=encode_array(counts))
    )


def commit(chunks: Sequence[UploadForesightRequest]) -> UploadForesightRequest:
    """The commit that matches ``chunks``."""
    payloads = [
        getattr(message.chunk, message.chunk.WhichOneof("routing") or "").data for message in chunks
    ]
    crc32 = 0
    for payload in payloads:
        crc32 = zlib.crc32(payload, crc32)
    return UploadForesightRequest(
        commit=ForesightCommit(
            chunks=len(chunks), payload_bytes=sum(map(len, payloads)), crc32=crc32
        )
    )


def upload(step: int, sequences: Mapping[str, NDArray[np.uint32]]) -> list[UploadForesightRequest]:
    """A whole upload."""
    chunks = [chunk(name, counts) for name, counts in sequences.items()]
    return [header(step), *chunks, commit(chunks)]
