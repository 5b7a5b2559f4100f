"""What an upload of foresight is about, and the pieces it brings."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.histogram import expert_histogram
from foremoe.limits import (
    MAX_EXPERTS,
    MAX_STEP,
    UPLOAD_MESSAGE_BYTES,
    check_layers,
    check_name,
    check_range,
)
from foremoe.rpc.arrays import decode_array
from foremoe.rpc.v1.foresight_pb2 import ForesightChunk, ForesightHeader

MAX_TOKENS = 2**24  # of one sequence; with MAX_TOP_K its counts stay within uint32
MAX_TOP_K = 128


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """The step that will train on the sequences, and the model they were routed in.

    layers: global decoder layer ids, ascending, the order of every array's layer axis.
    num_experts: E; top_k: experts per token, K.

    Raises InvalidInputError, naming the field, when a value is out of range.
    """

    step: int
    layers: tuple[int, ...]
    num_experts: int
    top_k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        check_range(self.step, 0, MAX_STEP, "header.step")
        check_layers(self.layers, "header.layers")
        check_range(self.num_experts, 1, MAX_EXPERTS, "header.num_experts")
        check_range(self.top_k, 1, min(self.num_experts, MAX_TOP_K), "header.top_k")
        if self.histogram_bytes > UPLOAD_MESSAGE_BYTES * 3 // 4:
            raise InvalidInputError(
                f"header: a histogram of {len(self.layers)} layers and {self.num_experts} experts "
                f"does not fit a message; at most {UPLOAD_MESSAGE_BYTES * 3 // 16} counts do"
            )

    @property
    def histogram_bytes(self) -> int:
        """Bytes of one sequence's histogram, uint32 ``[L, E]``."""
        return len(self.layers) * self.num_experts * 4


@dataclass(frozen=True, slots=True, eq=False)
class SequencePiece:
    """Some tokens of a sequence, reduced to a histogram uint32 ``[L, E]``.

    payload: the array as it came, for the upload's checksum.
    """

    sequence_id: str
    tokens: int
    histogram: NDArray[np.uint32]
    payload: NDArray[Any]


def check_histogram(histogram: NDArray[Any], tokens: int, header: UploadHeader, field: str) -> None:
    """Raises InvalidInputError unless every layer counts ``tokens * top_k`` pairs."""
    counted = histogram.sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero(counted != tokens * header.top_k)
    if wrong.size:
        layer = int(wrong[0])
        raise InvalidInputError(
            f"{field}: layer {header.layers[layer]} counts {int(counted[layer])} pairs, but "
            f"{tokens} tokens with top_k {header.top_k} make {tokens * header.top_k}"
        )


def decode_header(message: ForesightHeader) -> UploadHeader:
    """Raises InvalidInputError as UploadHeader does."""
    return UploadHeader(message.step, tuple(message.layers), message.num_experts, message.top_k)


def decode_chunk(message: ForesightChunk, header: UploadHeader, field: str) -> SequencePiece:
    """The chunk's routing as a histogram; expert ids are counted here.

    Raises InvalidInputError, naming ``field``, for wrong shapes or types, ids outside
    ``[0, num_experts)``, or counts that do not fit ``tokens`` and ``top_k``.
    """
    check_name(message.sequence_id, f"{field}.sequence_id")
    check_range(message.tokens, 1, MAX_TOKENS, f"{field}.tokens")
    layers, tokens = len(header.layers), message.tokens
    if message.HasField("histogram"):
        name = f"{field}.histogram"
        histogram = decode_array(message.histogram, name, [np.uint32], (layers, header.num_experts))
        check_histogram(histogram, tokens, header, name)
        return SequencePiece(message.sequence_id, tokens, histogram, payload=histogram)
    if message.HasField("expert_ids"):
        name = f"{field}.expert_ids"
        ids = decode_array(
            message.expert_ids,
            name,
            [np.uint8, np.uint16, np.int32],
            (tokens, layers, header.top_k),
        )
        try:
            histogram = expert_histogram(ids, header.num_experts)
        except InvalidInputError as error:
            raise InvalidInputError(f"{name}: {error}") from None
        return SequencePiece(message.sequence_id, tokens, histogram, payload=ids)
    raise InvalidInputError(f"{field}: give histogram or expert_ids")
