from foremoe.rpc.v1 import stage_pb2 as _stage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitScheduleRequest(_message.Message):
    __slots__ = ("ep_group", "step", "stage", "micro_steps")
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MICRO_STEPS_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    step: int
    stage: _stage_pb2.Stage
    micro_steps: _containers.RepeatedCompositeFieldContainer[MicroStep]
    def __init__(self, ep_group: _Optional[str] = ..., step: _Optional[int] = ..., stage: _Optional[_Union[_stage_pb2.Stage, str]] = ..., micro_steps: _Optional[_Iterable[_Union[MicroStep, _Mapping]]] = ...) -> None: ...

class MicroStep(_message.Message):
    __slots__ = ("mini_batch", "ranks")
    MINI_BATCH_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    mini_batch: int
    ranks: _containers.RepeatedCompositeFieldContainer[RankSequences]
    def __init__(self, mini_batch: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[RankSequences, _Mapping]]] = ...) -> None: ...

class RankSequences(_message.Message):
    __slots__ = ("sequence_ids",)
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sequence_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SubmitScheduleResponse(_message.Message):
    __slots__ = ("micro_steps",)
    MICRO_STEPS_FIELD_NUMBER: _ClassVar[int]
    micro_steps: int
    def __init__(self, micro_steps: _Optional[int] = ...) -> None: ...

class ReleaseStepRequest(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class ReleaseStepResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
