from foremoe.rpc.v1 import array_pb2 as _array_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadForesightRequest(_message.Message):
    __slots__ = ("header", "chunk", "commit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    header: ForesightHeader
    chunk: ForesightChunk
    commit: ForesightCommit
    def __init__(self, header: _Optional[_Union[ForesightHeader, _Mapping]] = ..., chunk: _Optional[_Union[ForesightChunk, _Mapping]] = ..., commit: _Optional[_Union[ForesightCommit, _Mapping]] = ...) -> None: ...

class ForesightHeader(_message.Message):
    __slots__ = ("step", "layers", "num_experts", "top_k")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    step: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    num_experts: int
    top_k: int
    def __init__(self, step: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., num_experts: _Optional[int] = ..., top_k: _Optional[int] = ...) -> None: ...

class ForesightChunk(_message.Message):
    __slots__ = ("sequence_id", "tokens", "histogram", "expert_ids")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    EXPERT_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: str
    tokens: int
    histogram: _array_pb2.Array
    expert_ids: _array_pb2.Array
    def __init__(self, sequence_id: _Optional[str] = ..., tokens: _Optional[int] = ..., histogram: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., expert_ids: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...

class ForesightCommit(_message.Message):
    __slots__ = ("chunks", "payload_bytes", "crc32")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    payload_bytes: int
    crc32: int
    def __init__(self, chunks: _Optional[int] = ..., payload_bytes: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class UploadForesightResponse(_message.Message):
    __slots__ = ("sequences_added", "sequences_known")
    SEQUENCES_ADDED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_KNOWN_FIELD_NUMBER: _ClassVar[int]
    sequences_added: int
    sequences_known: int
    def __init__(self, sequences_added: _Optional[int] = ..., sequences_known: _Optional[int] = ...) -> None: ...
