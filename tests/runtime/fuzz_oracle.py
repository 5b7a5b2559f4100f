"""What an answer must be, found without the daemon's own code."""

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from foremoe.rpc.v1 import foresight_pb2, rank_pb2, schedule_pb2, status_pb2
from foremoe.rpc.v1.array_pb2 import Array, DataType
from foremoe.rpc.v1.foresight_pb2 import ForesightHeader, UploadForesightRequest
from tests.runtime.fuzz_calls import HEALTH, REFLECTION, TOKEN, UNKNOWN, UPLOAD, Case

Code = grpc.StatusCode
TRANSPORT_BYTES = 4 << 20
UPLOAD_BYTES = 1 << 20
_INVALID, _EXHAUSTED, _CONFLICT = (
    Code.INVALID_ARGUMENT,
    Code.RESOURCE_EXHAUSTED,
    Code.ALREADY_EXISTS,
)
_ALLOWED = {
    "RegisterRank": {Code.OK, _INVALID, _CONFLICT, _EXHAUSTED},
    "ReportStage": {Code.OK, _INVALID, Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "StreamPlans": {Code.OK, Code.NOT_FOUND},
    "ProposeSchedule": {Code.OK, _INVALID, Code.NOT_FOUND, _EXHAUSTED},
    "SubmitSchedule": {Code.OK, _INVALID, Code.NOT_FOUND, _CONFLICT, _EXHAUSTED},
    "ReleaseStep": {Code.OK, _INVALID},
    "GetStatus": {Code.OK},
    "Check": {Code.OK, Code.NOT_FOUND},
    "ServerReflectionInfo": {Code.OK},
}
_IDS = {
    DataType.DATA_TYPE_UINT8: np.uint8,
    DataType.DATA_TYPE_UINT16: np.uint16,
    DataType.DATA_TYPE_INT32: np.int32,
}
_OURS = {
    f"/{service.full_name}/{method.name}": method.input_type
    for module in (foresight_pb2, rank_pb2, schedule_pb2, status_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_NOT_VALID = "not a valid message"
_ROOT = re.escape(str(Path(__file__).parents[2]))
_LEAKS = re.compile(
    rf"Traceback|File \"|\.py\b|internal error|/tmp|/usr|{_ROOT}|<class|object at 0x"
)


def complaint(case: Case, code: grpc.StatusCode, details: str) -> str | None:
    """What is wrong with an answer, None if nothing is."""
    expected = _expected(case)
    if code not in expected:
        wanted = " or ".join(sorted(one.name for one in expected))
        return f"expected {wanted}, got {code.name}: {details[:200]}"
    if code is Code.OK or case.method not in _OURS:
        return None
    if not details or len(details) > 1000 or "\n" in details or _LEAKS.search(details):
        return f"details are not one clean line: {details[:200]!r}"
    if any(len(message) > TRANSPORT_BYTES for message in case.messages):
        return None  # gRPC's own words
    if case.token != TOKEN:
        return None if "token" in details else f"details do not name the token: {details[:200]}"
    if not any(word in details for word in _words(_OURS[case.method])):
        return f"details name no field: {details[:200]}"
    if case.method != UPLOAD and parsed(case) is None and _NOT_VALID not in details:
        return f"details do not say that this is no message: {details[:200]}"
    return None


def parsed(case: Case) -> Message | None:
    """The request of a call with one message; None if that is none of its type."""
    kinds: dict[str, type[Message]] = {HEALTH: HealthCheckRequest}
    kinds[REFLECTION] = ServerReflectionRequest
    kind = kinds.get(case.method) or message_factory.GetMessageClass(_OURS[case.method])
    try:
        return kind.FromString(case.messages[0])
    except DecodeError:
        return None


def _expected(case: Case) -> set[grpc.StatusCode]:
    if case.method == UNKNOWN:
        return {Code.UNIMPLEMENTED}
    if case.token != TOKEN:
        return {Code.UNAUTHENTICATED}
    if case.method == UPLOAD:
        if is_sound(case.messages):
            return {Code.OK, _CONFLICT, _EXHAUSTED}
        return {_INVALID, _EXHAUSTED}
    if len(case.messages[0]) > TRANSPORT_BYTES:
        return {_EXHAUSTED}
    if parsed(case) is None:
        return {_INVALID}
    return _ALLOWED[case.target]


def _words(message: Descriptor) -> set[str]:
    """What details may name: fields of the request, or what they are about in words."""
    return {*_fields(message), "EP group", "memory limit", "message", "upload"}


def _fields(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        yield field.name
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _fields(field.message_type)


def is_sound(messages: Sequence[bytes]) -> bool:
    """Whether an upload is complete and adds up, up to and with its commit."""
    try:
        requests = []
        for data in messages:
            if len(data) > UPLOAD_BYTES:
                return False
            requests.append(UploadForesightRequest.FromString(data))
            if requests[-1].WhichOneof("part") == "commit":
                break
    except DecodeError:
        return False
    parts = [request.WhichOneof("part") for request in requests]
    if len(parts) < 2 or parts != ["header", *["chunk"] * (len(parts) - 2), "commit"]:
        return False
    header, chunks = requests[0].header, [request.chunk for request in requests[1:-1]]
    if not _is_sound_header(header) or not all(_is_sound_chunk(chunk, header) for chunk in chunks):
        return False
    tokens: dict[str, int] = {}
    for chunk in chunks:
        tokens[chunk.sequence_id] = tokens.get(chunk.sequence_id, 0) + chunk.tokens
    payload = b"".join(getattr(chunk, chunk.WhichOneof("routing") or "").data for chunk in chunks)
    commit = requests[-1].commit
    return (commit.chunks, commit.payload_bytes, commit.crc32) == (
        len(chunks),
        len(payload),
        zlib.crc32(payload),
    ) and all(count <= 2**24 for count in tokens.values())


def _is_sound_header(header: ForesightHeader) -> bool:
    layers = list(header.layers)
    return (
        header.step < 2**63
        and 1 <= len(layers) <= 4096
        and layers == sorted(set(layers))
        and layers[-1] < 2**31
        and 1 <= header.num_experts <= 65536
        and 1 <= header.top_k <= min(header.num_experts, 128)
        and len(layers) * header.num_experts <= 196_608
    )


def _is_sound_chunk(chunk: foresight_pb2.ForesightChunk, header: ForesightHeader) -> bool:
    name = chunk.sequence_id
    if not 1 <= len(name) <= 256 or not name.isprintable() or not 1 <= chunk.tokens <= 2**24:
        return False
    layers, pairs = len(header.layers), chunk.tokens * header.top_k
    kind = chunk.WhichOneof("routing")
    if kind == "histogram":
        counts = _array(chunk.histogram, np.uint32, [layers, header.num_experts])
        return counts is not None and all(sum(row) == pairs for row in counts.tolist())
    if kind == "expert_ids":
        dtype = _IDS.get(chunk.expert_ids.data_type)
        shape = [chunk.tokens, layers, header.top_k]
        ids = None if dtype is None else _array(chunk.expert_ids, dtype, shape)
        return ids is not None and int(ids.min()) >= 0 and int(ids.max()) < header.num_experts
    return False


def _array(message: Array, dtype: type, shape: list[int]) -> "np.ndarray | None":  # type: ignore[type-arg]
    if np.dtype(dtype) == np.uint32 and message.data_type != DataType.DATA_TYPE_UINT32:
        return None
    if list(message.shape) != shape:
        return None
    if len(message.data) != int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize:
        return None
    return np.frombuffer(message.data, dtype).reshape(shape)
