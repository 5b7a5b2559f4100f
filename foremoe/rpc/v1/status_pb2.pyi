from foremoe.rpc.v1 import array_pb2 as _array_pb2
from foremoe.rpc.v1 import stage_pb2 as _stage_pb2
from foremoe.rpc.v1 import timeline_pb2 as _timeline_pb2
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
    __slots__ = ("worst_micro_steps_of",)
    WORST_MICRO_STEPS_OF_FIELD_NUMBER: _ClassVar[int]
    worst_micro_steps_of: str
    def __init__(self, worst_micro_steps_of: _Optional[str] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "daemon_id", "pid", "uptime_seconds", "stored_bytes", "stored_bytes_limit", "ep_groups", "steps", "released")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DAEMON_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    EP_GROUPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    version: str
    daemon_id: str
    pid: int
    uptime_seconds: float
    stored_bytes: int
    stored_bytes_limit: int
    ep_groups: _containers.RepeatedCompositeFieldContainer[EpGroupStatus]
    steps: _containers.RepeatedCompositeFieldContainer[StepStatus]
    released: _containers.RepeatedCompositeFieldContainer[StepStatus]
    def __init__(self, version: _Optional[str] = ..., daemon_id: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., stored_bytes: _Optional[int] = ..., stored_bytes_limit: _Optional[int] = ..., ep_groups: _Optional[_Iterable[_Union[EpGroupStatus, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[StepStatus, _Mapping]]] = ..., released: _Optional[_Iterable[_Union[StepStatus, _Mapping]]] = ...) -> None: ...

class EpGroupStatus(_message.Message):
    __slots__ = ("ep_group", "ranks", "registered", "streaming", "spare_slots", "latest")
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    SPARE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    ranks: int
    registered: int
    streaming: int
    spare_slots: int
    latest: _containers.RepeatedCompositeFieldContainer[StageDetail]
    def __init__(self, ep_group: _Optional[str] = ..., ranks: _Optional[int] = ..., registered: _Optional[int] = ..., streaming: _Optional[int] = ..., spare_slots: _Optional[int] = ..., latest: _Optional[_Iterable[_Union[StageDetail, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ("ep_group", "stage", "micro_steps", "planned", "imbalance_before", "imbalance_after", "replicas", "degraded", "planning_seconds", "reported", "seconds", "exposed_seconds", "imbalance_measured", "degraded_reasons", "agreement_misses", "paths", "planning_failed")
    class DegradedReasonsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MICRO_STEPS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_AFTER_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PLANNING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_MEASURED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASONS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_MISSES_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    PLANNING_FAILED_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    stage: _stage_pb2.Stage
    micro_steps: int
    planned: int
    imbalance_before: float
    imbalance_after: float
    replicas: float
    degraded: int
    planning_seconds: float
    reported: int
    seconds: float
    exposed_seconds: float
    imbalance_measured: float
    degraded_reasons: _containers.ScalarMap[str, int]
    agreement_misses: int
    paths: _containers.RepeatedCompositeFieldContainer[PathStatus]
    planning_failed: bool
    def __init__(self, ep_group: _Optional[str] = ..., stage: _Optional[_Union[_stage_pb2.Stage, str]] = ..., micro_steps: _Optional[int] = ..., planned: _Optional[int] = ..., imbalance_before: _Optional[float] = ..., imbalance_after: _Optional[float] = ..., replicas: _Optional[float] = ..., degraded: _Optional[int] = ..., planning_seconds: _Optional[float] = ..., reported: _Optional[int] = ..., seconds: _Optional[float] = ..., exposed_seconds: _Optional[float] = ..., imbalance_measured: _Optional[float] = ..., degraded_reasons: _Optional[_Mapping[str, int]] = ..., agreement_misses: _Optional[int] = ..., paths: _Optional[_Iterable[_Union[PathStatus, _Mapping]]] = ..., planning_failed: bool = ...) -> None: ...

class PathStatus(_message.Message):
    __slots__ = ("path", "copies", "copied_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    COPIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    copies: int
    copied_bytes: int
    def __init__(self, path: _Optional[str] = ..., copies: _Optional[int] = ..., copied_bytes: _Optional[int] = ...) -> None: ...

class StageDetail(_message.Message):
    __slots__ = ("step", "status", "layers", "busiest_ranks", "worst_micro_step", "figures")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    BUSIEST_RANKS_FIELD_NUMBER: _ClassVar[int]
    WORST_MICRO_STEP_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    step: int
    status: StageStatus
    layers: _containers.RepeatedCompositeFieldContainer[LayerStatus]
    busiest_ranks: _containers.RepeatedCompositeFieldContainer[RankStatus]
    worst_micro_step: WorstMicroStep
    figures: StageFigures
    def __init__(self, step: _Optional[int] = ..., status: _Optional[_Union[StageStatus, _Mapping]] = ..., layers: _Optional[_Iterable[_Union[LayerStatus, _Mapping]]] = ..., busiest_ranks: _Optional[_Iterable[_Union[RankStatus, _Mapping]]] = ..., worst_micro_step: _Optional[_Union[WorstMicroStep, _Mapping]] = ..., figures: _Optional[_Union[StageFigures, _Mapping]] = ...) -> None: ...

class WorstMicroStep(_message.Message):
    __slots__ = ("micro_step", "load", "home", "replica_expert", "imbalance_before", "imbalance_after")
    MICRO_STEP_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    REPLICA_EXPERT_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_AFTER_FIELD_NUMBER: _ClassVar[int]
    micro_step: int
    load: _array_pb2.Array
    home: _array_pb2.Array
    replica_expert: _array_pb2.Array
    imbalance_before: _array_pb2.Array
    imbalance_after: _array_pb2.Array
    def __init__(self, micro_step: _Optional[int] = ..., load: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., home: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., replica_expert: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., imbalance_before: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., imbalance_after: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...

class StageFigures(_message.Message):
    __slots__ = ("imbalance", "traffic", "submitted_unix_ns", "seconds", "sample", "timelines")
    IMBALANCE_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TIMELINES_FIELD_NUMBER: _ClassVar[int]
    imbalance: _array_pb2.Array
    traffic: _array_pb2.Array
    submitted_unix_ns: int
    seconds: _array_pb2.Array
    sample: LoadSample
    timelines: _containers.RepeatedCompositeFieldContainer[RankTimeline]
    def __init__(self, imbalance: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., traffic: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., submitted_unix_ns: _Optional[int] = ..., seconds: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., sample: _Optional[_Union[LoadSample, _Mapping]] = ..., timelines: _Optional[_Iterable[_Union[RankTimeline, _Mapping]]] = ...) -> None: ...

class LoadSample(_message.Message):
    __slots__ = ("load", "home", "layers", "imbalance_after", "copies", "ranks_per_node")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_AFTER_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    RANKS_PER_NODE_FIELD_NUMBER: _ClassVar[int]
    load: _array_pb2.Array
    home: _array_pb2.Array
    layers: _containers.RepeatedScalarFieldContainer[int]
    imbalance_after: float
    copies: float
    ranks_per_node: int
    def __init__(self, load: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., home: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., layers: _Optional[_Iterable[int]] = ..., imbalance_after: _Optional[float] = ..., copies: _Optional[float] = ..., ranks_per_node: _Optional[int] = ...) -> None: ...

class RankTimeline(_message.Message):
    __slots__ = ("rank", "timeline")
    RANK_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    timeline: _timeline_pb2.Timeline
    def __init__(self, rank: _Optional[int] = ..., timeline: _Optional[_Union[_timeline_pb2.Timeline, _Mapping]] = ...) -> None: ...

class LayerStatus(_message.Message):
    __slots__ = ("layer", "imbalance_before", "imbalance_after", "imbalance_measured", "exposed_seconds")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_AFTER_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_MEASURED_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    imbalance_before: float
    imbalance_after: float
    imbalance_measured: float
    exposed_seconds: float
    def __init__(self, layer: _Optional[int] = ..., imbalance_before: _Optional[float] = ..., imbalance_after: _Optional[float] = ..., imbalance_measured: _Optional[float] = ..., exposed_seconds: _Optional[float] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("rank", "relative_load", "exposed_seconds", "seconds")
    RANK_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_LOAD_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    relative_load: float
    exposed_seconds: float
    seconds: float
    def __init__(self, rank: _Optional[int] = ..., relative_load: _Optional[float] = ..., exposed_seconds: _Optional[float] = ..., seconds: _Optional[float] = ...) -> None: ...
