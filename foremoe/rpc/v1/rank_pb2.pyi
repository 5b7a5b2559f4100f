from foremoe.rpc.v1 import array_pb2 as _array_pb2
from foremoe.rpc.v1 import stage_pb2 as _stage_pb2
from foremoe.rpc.v1 import timeline_pb2 as _timeline_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRankRequest(_message.Message):
    __slots__ = ("ep_group", "rank", "ranks", "ranks_per_node", "spare_slots", "num_experts", "layers", "moves_homes", "home")
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    RANKS_PER_NODE_FIELD_NUMBER: _ClassVar[int]
    SPARE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MOVES_HOMES_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    rank: int
    ranks: int
    ranks_per_node: int
    spare_slots: int
    num_experts: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    moves_homes: bool
    home: _array_pb2.Array
    def __init__(self, ep_group: _Optional[str] = ..., rank: _Optional[int] = ..., ranks: _Optional[int] = ..., ranks_per_node: _Optional[int] = ..., spare_slots: _Optional[int] = ..., num_experts: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., moves_homes: bool = ..., home: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...

class RegisterRankResponse(_message.Message):
    __slots__ = ("daemon_id",)
    DAEMON_ID_FIELD_NUMBER: _ClassVar[int]
    daemon_id: str
    def __init__(self, daemon_id: _Optional[str] = ...) -> None: ...

class StreamPlansRequest(_message.Message):
    __slots__ = ("ep_group", "rank")
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    rank: int
    def __init__(self, ep_group: _Optional[str] = ..., rank: _Optional[int] = ...) -> None: ...

class StreamPlansResponse(_message.Message):
    __slots__ = ("step", "stage", "micro_step", "micro_steps", "mini_batch", "layers", "home", "replica_expert", "replica_tokens", "placement_digest")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MICRO_STEP_FIELD_NUMBER: _ClassVar[int]
    MICRO_STEPS_FIELD_NUMBER: _ClassVar[int]
    MINI_BATCH_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    REPLICA_EXPERT_FIELD_NUMBER: _ClassVar[int]
    REPLICA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    step: int
    stage: _stage_pb2.Stage
    micro_step: int
    micro_steps: int
    mini_batch: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    home: _array_pb2.Array
    replica_expert: _array_pb2.Array
    replica_tokens: _array_pb2.Array
    placement_digest: bytes
    def __init__(self, step: _Optional[int] = ..., stage: _Optional[_Union[_stage_pb2.Stage, str]] = ..., micro_step: _Optional[int] = ..., micro_steps: _Optional[int] = ..., mini_batch: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., home: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., replica_expert: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., replica_tokens: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., placement_digest: _Optional[bytes] = ...) -> None: ...

class ReportStageRequest(_message.Message):
    __slots__ = ("ep_group", "rank", "step", "stage", "micro_steps", "timeline")
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MICRO_STEPS_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    rank: int
    step: int
    stage: _stage_pb2.Stage
    micro_steps: _containers.RepeatedCompositeFieldContainer[MicroStepReport]
    timeline: _timeline_pb2.Timeline
    def __init__(self, ep_group: _Optional[str] = ..., rank: _Optional[int] = ..., step: _Optional[int] = ..., stage: _Optional[_Union[_stage_pb2.Stage, str]] = ..., micro_steps: _Optional[_Iterable[_Union[MicroStepReport, _Mapping]]] = ..., timeline: _Optional[_Union[_timeline_pb2.Timeline, _Mapping]] = ...) -> None: ...

class MicroStepReport(_message.Message):
    __slots__ = ("micro_step", "degraded_reason", "computed_tokens", "exposed_seconds", "host_bytes", "peer_bytes", "gradient_bytes", "host_copies", "peer_copies", "seconds", "exposed_gradient_seconds", "began_unix_ns")
    MICRO_STEP_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEER_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_COPIES_FIELD_NUMBER: _ClassVar[int]
    PEER_COPIES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_GRADIENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BEGAN_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    micro_step: int
    degraded_reason: str
    computed_tokens: _array_pb2.Array
    exposed_seconds: _array_pb2.Array
    host_bytes: int
    peer_bytes: int
    gradient_bytes: int
    host_copies: int
    peer_copies: int
    seconds: float
    exposed_gradient_seconds: float
    began_unix_ns: int
    def __init__(self, micro_step: _Optional[int] = ..., degraded_reason: _Optional[str] = ..., computed_tokens: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., exposed_seconds: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., host_bytes: _Optional[int] = ..., peer_bytes: _Optional[int] = ..., gradient_bytes: _Optional[int] = ..., host_copies: _Optional[int] = ..., peer_copies: _Optional[int] = ..., seconds: _Optional[float] = ..., exposed_gradient_seconds: _Optional[float] = ..., began_unix_ns: _Optional[int] = ...) -> None: ...

class ReportStageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
