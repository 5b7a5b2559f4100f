from foremoe.rpc.v1 import stage_pb2 as _stage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProposeScheduleRequest(_message.Message):
    __slots__ = ("ep_group", "step", "token_budget", "max_sequences", "attention", "mini_batches")
    EP_GROUP_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BUDGET_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MINI_BATCHES_FIELD_NUMBER: _ClassVar[int]
    ep_group: str
    step: int
    token_budget: int
    max_sequences: int
    attention: AttentionCost
    mini_batches: _containers.RepeatedCompositeFieldContainer[MiniBatch]
    def __init__(self, ep_group: _Optional[str] = ..., step: _Optional[int] = ..., token_budget: _Optional[int] = ..., max_sequences: _Optional[int] = ..., attention: _Optional[_Union[AttentionCost, _Mapping]] = ..., mini_batches: _Optional[_Iterable[_Union[MiniBatch, _Mapping]]] = ...) -> None: ...

class AttentionCost(_message.Message):
    __slots__ = ("alpha", "beta")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    beta: float
    def __init__(self, alpha: _Optional[float] = ..., beta: _Optional[float] = ...) -> None: ...

class MiniBatch(_message.Message):
    __slots__ = ("sequence_ids",)
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sequence_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ProposeScheduleResponse(_message.Message):
    __slots__ = ("micro_steps", "cost", "length_only_cost", "bound")
    MICRO_STEPS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    LENGTH_ONLY_COST_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    micro_steps: _containers.RepeatedCompositeFieldContainer[MicroStep]
    cost: int
    length_only_cost: int
    bound: int
    def __init__(self, micro_steps: _Optional[_Iterable[_Union[MicroStep, _Mapping]]] = ..., cost: _Optional[int] = ..., length_only_cost: _Optional[int] = ..., bound: _Optional[int] = ...) -> None: ...

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
