from foremoe.rpc.v1 import array_pb2 as _array_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_UNSPECIFIED: _ClassVar[Stream]
    STREAM_OTHER: _ClassVar[Stream]
    STREAM_AGREEMENT: _ClassVar[Stream]
    STREAM_DISPATCH: _ClassVar[Stream]
    STREAM_COMPUTE: _ClassVar[Stream]
    STREAM_EXPOSED_PLANS: _ClassVar[Stream]
    STREAM_EXPOSED_COPIES: _ClassVar[Stream]
    STREAM_EXPOSED_GRADIENTS: _ClassVar[Stream]
    STREAM_HOST: _ClassVar[Stream]
    STREAM_PEER: _ClassVar[Stream]
    STREAM_GRADIENTS: _ClassVar[Stream]
STREAM_UNSPECIFIED: Stream
STREAM_OTHER: Stream
STREAM_AGREEMENT: Stream
STREAM_DISPATCH: Stream
STREAM_COMPUTE: Stream
STREAM_EXPOSED_PLANS: Stream
STREAM_EXPOSED_COPIES: Stream
STREAM_EXPOSED_GRADIENTS: Stream
STREAM_HOST: Stream
STREAM_PEER: Stream
STREAM_GRADIENTS: Stream

class Timeline(_message.Message):
    __slots__ = ("began_unix_ns", "spans")
    BEGAN_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    began_unix_ns: int
    spans: _array_pb2.Array
    def __init__(self, began_unix_ns: _Optional[int] = ..., spans: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...
