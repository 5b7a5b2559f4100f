from foremoe.rpc.v1 import stage_pb2 as _stage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StepState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_STATE_UNSPECIFIED: _ClassVar[StepState]
    STEP_STATE_COLLECTING: _ClassVar[StepState]
    STEP_STATE_SCHEDULED: _ClassVar[StepState]
    STEP_STATE_PLANNED: _ClassVar[StepState]
    STEP_STATE_EXECUTING: _ClassVar[StepState]
    STEP_STATE_RELEASED: _ClassVar[StepState]
STEP_STATE_UNSPECIFIED: StepState
STEP_STATE_COLLECTING: StepState
STEP_STATE_SCHEDULED: StepState
STEP_STATE_PLANNED: StepState
STEP_STATE_EXECUTING: StepState
STEP_STATE_RELEASED: StepState

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "daemon_id", "pid", "uptime_seconds", "stored_bytes", "stored_bytes_limit", "ep_groups", "steps")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DAEMON_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    EP_GROUPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    version: str
    daemon_id: str
    pid: int
    uptime_seconds: float
    stored_bytes: int
    stored_bytes_limit: int
    ep_groups: _containers.RepeatedCompositeFieldContainer[EpGroupStatus]
    steps: _containers.RepeatedCompositeFieldContainer[StepStatus]
    def __init__(self, version: _Optional[str] = ..., daemon_id: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., stored_bytes: _Optional[int] = ..., stored_bytes_limit: _Optional[int] = ..., ep_groups: _Optional[_Iterable[_Union[EpGroupStatus, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[StepStatus, _Mapping]]] = ...) -> None: ...

class EpGroupStatus(_message.Message):
    __slots__ = ("ep_group", "ranks", "registered", "streaming", "spare_slots")
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    SPARE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    ranks: int
    registered: int
    streaming: int
    spare_slots: int
    def __init__(self, ep_group: _Optional[str] = ..., ranks: _Optional[int] = ..., registered: _Optional[int] = ..., streaming: _Optional[int] = ..., spare_slots: _Optional[int] = ...) -> None: ...

class StepStatus(_message.Message):
    __slots__ = ("step", "state", "sequences", "stages")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    step: int
    state: StepState
    sequences: int
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    def __init__(self, step: _Optional[int] = ..., state: _Optional[_Union[StepState, str]] = ..., sequences: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ...) -> None: ...

class StageStatus(_message.Message):
    __slots__ = ("ep_group", "stage", "micro_steps", "planned", "imbalance_before", "imbalance_after", "replicas", "degraded", "planning_seconds")
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MICRO_STEPS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_AFTER_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PLANNING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    stage: _stage_pb2.Stage
    micro_steps: int
    planned: int
    imbalance_before: float
    imbalance_after: float
    replicas: float
    degraded: int
    planning_seconds: float
    def __init__(self, ep_group: _Optional[str] = ..., stage: _Optional[_Union[_stage_pb2.Stage, str]] = ..., micro_steps: _Optional[int] = ..., planned: _Optional[int] = ..., imbalance_before: _Optional[float] = ..., imbalance_after: _Optional[float] = ..., replicas: _Optional[float] = ..., degraded: _Optional[int] = ..., planning_seconds: _Optional[float] = ...) -> None: ...
