"""A snapshot of what a daemon holds; fields are named and described in status.proto."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.message import Message

from foremoe.errors import VersionError
from foremoe.rpc.stage_figures import StageFigures, decode_figures, encode_figures
from foremoe.rpc.stages import decode_stage, encode_stage
from foremoe.rpc.v1 import status_pb2
from foremoe.rpc.worst_micro_step import WorstMicroStep, decode_worst, encode_worst
from foremoe.vocabulary import Stage


class StepState(StrEnum):
    """Where an RL step stands; foremoe.runtime.step has the edges."""

    COLLECTING = "collecting"
    SCHEDULED = "scheduled"
    PLANNED = "planned"
    EXECUTING = "executing"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class PathStatus:
    """What the ranks of a group received on one path."""

    path: str
    copies: int
    copied_bytes: int


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage of one EP group; imbalances and replicas are means over micro-steps and layers.

    planned: micro-steps with a plan; reported: those that every rank has reported.
    seconds, exposed_seconds: over the reported micro-steps, on the worst rank.
    degraded: micro-steps that some rank ran without the plan; degraded_reasons says why.
    planning_failed: it broke off, and the other micro-steps will have no plan.
    """

    ep_group: str
    stage: Stage
    micro_steps: int
    planned: int
    imbalance_before: float
    imbalance_after: float
    replicas: float
    degraded: int
    planning_seconds: float
    reported: int = 0
    seconds: float = 0.0
    exposed_seconds: float = 0.0
    imbalance_measured: float = 0.0
    degraded_reasons: dict[str, int] = field(default_factory=dict)
    agreement_misses: int = 0
    paths: tuple[PathStatus, ...] = ()
    planning_failed: bool = False


@dataclass(frozen=True, slots=True)
class LayerStatus:
    """One layer in one stage, by its global id; means over micro-steps."""

    layer: int
    imbalance_before: float
    imbalance_after: float
    imbalance_measured: float
    exposed_seconds: float


@dataclass(frozen=True, slots=True)
class RankStatus:
    """One rank in one stage; relative_load is pairs computed / mean over the ranks."""

    rank: int
    relative_load: float
    exposed_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class StageDetail:
    """A stage by layer, and its busiest ranks, busiest first.

    worst_micro_step, figures: a client has them where they were asked for and the stage is planned;
    of figures the daemon keeps those of the last stages, as many as there is room for.
    """

    step: int
    status: StageStatus
    layers: tuple[LayerStatus, ...]
    busiest_ranks: tuple[RankStatus, ...]
    worst_micro_step: WorstMicroStep | None = None
    figures: StageFigures | None = None

    @property
    def imbalance(self) -> float:
        """As measured, or else as planned."""
        return self.status.imbalance_measured or self.status.imbalance_after


@dataclass(frozen=True, slots=True)
class EpGroupStatus:
    """One EP group: its ranks, how many have registered, how many hold a plan stream.

    latest: of each kind of stage the one that was planned or reported last.
    """

    ep_group: str
    ranks: int
    registered: int
    streaming: int
    spare_slots: int
    latest: tuple[StageDetail, ...] = ()

    @property
    def worst_imbalance(self) -> float:
        """Of its latest stages."""
        return max((detail.imbalance for detail in self.latest), default=0.0)


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step."""

    step: int
    state: StepState
    sequences: int
    stages: tuple[StageStatus, ...]


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """The daemon as a whole; steps are those not released, released the last ones that were.

    Both are ordered, oldest first.
    """

    version: str
    daemon_id: str
    pid: int
    uptime_seconds: float
    stored_bytes: int
    stored_bytes_limit: int
    ep_groups: tuple[EpGroupStatus, ...]
    steps: tuple[StepStatus, ...]
    released: tuple[StepStatus, ...] = ()


_STATES = {
    StepState.COLLECTING: status_pb2.STEP_STATE_COLLECTING,
    StepState.SCHEDULED: status_pb2.STEP_STATE_SCHEDULED,
    StepState.PLANNED: status_pb2.STEP_STATE_PLANNED,
    StepState.EXECUTING: status_pb2.STEP_STATE_EXECUTING,
    StepState.RELEASED: status_pb2.STEP_STATE_RELEASED,
}
_STATE_NAMES = {int(value): state for state, value in _STATES.items()}

_Kind = TypeVar("_Kind")


def encode_status(
    status: RuntimeStatus, detailed: Collection[str] = ()
) -> status_pb2.GetStatusResponse:
    """Worst micro-steps and figures are large: only those of the EP groups ``detailed`` go in."""
    nested: dict[str, Any] = {
        "ep_groups": [
            _encode_group(group, detailed=group.ep_group in detailed) for group in status.ep_groups
        ],
        "steps": [_encode_step(step) for step in status.steps],
        "released": [_encode_step(step) for step in status.released],
    }
    return status_pb2.GetStatusResponse(**_values(status), **nested)


def decode_status(message: status_pb2.GetStatusResponse) -> RuntimeStatus:
    return _decode(
        RuntimeStatus,
        message,
        ep_groups=tuple(_decode_group(group) for group in message.ep_groups),
        steps=tuple(_decode_step(step) for step in message.steps),
        released=tuple(_decode_step(step) for step in message.released),
    )


def _encode_group(group: EpGroupStatus, *, detailed: bool) -> status_pb2.EpGroupStatus:
    latest = [
        status_pb2.StageDetail(
            step=detail.step,
            status=_encode_stage(detail.status),
            layers=[status_pb2.LayerStatus(**asdict(layer)) for layer in detail.layers],
            busiest_ranks=[status_pb2.RankStatus(**asdict(rank)) for rank in detail.busiest_ranks],
            worst_micro_step=(
                encode_worst(detail.worst_micro_step)
                if detailed and detail.worst_micro_step is not None
                else None
            ),
            figures=(
                encode_figures(detail.figures) if detailed and detail.figures is not None else None
            ),
        )
        for detail in group.latest
    ]
    return status_pb2.EpGroupStatus(**_values(group), latest=latest)


def _decode_group(message: status_pb2.EpGroupStatus) -> EpGroupStatus:
    latest = tuple(
        StageDetail(
            step=detail.step,
            status=_decode_stage(detail.status),
            layers=tuple(_decode(LayerStatus, layer) for layer in detail.layers),
            busiest_ranks=tuple(_decode(RankStatus, rank) for rank in detail.busiest_ranks),
            worst_micro_step=(
                decode_worst(detail.worst_micro_step)
                if detail.HasField("worst_micro_step")
                else None
            ),
            figures=decode_figures(detail.figures) if detail.HasField("figures") else None,
        )
        for detail in message.latest
    )
    return _decode(EpGroupStatus, message, latest=latest)


def _encode_step(step: StepStatus) -> status_pb2.StepStatus:
    return status_pb2.StepStatus(
        step=step.step,
        state=_STATES[step.state],
        sequences=step.sequences,
        stages=[_encode_stage(stage) for stage in step.stages],
    )


def _decode_step(message: status_pb2.StepStatus) -> StepStatus:
    return StepStatus(
        step=message.step,
        state=_decode_state(message.state),
        sequences=message.sequences,
        stages=tuple(_decode_stage(stage) for stage in message.stages),
    )


def _decode_state(value: int) -> StepState:
    state = _STATE_NAMES.get(int(value))
    if state is None:
        raise VersionError(
            f"the runtime is of another version: its step state {int(value)} is not known here; "
            "install the same release on both sides"
        )
    return state


def _encode_stage(stage: StageStatus) -> status_pb2.StageStatus:
    nested: dict[str, Any] = {
        "stage": encode_stage(stage.stage),
        "degraded_reasons": stage.degraded_reasons,
        "paths": [status_pb2.PathStatus(**asdict(path)) for path in stage.paths],
    }
    return status_pb2.StageStatus(**{**_values(stage), **nested})


def _decode_stage(message: status_pb2.StageStatus) -> StageStatus:
    return _decode(
        StageStatus,
        message,
        stage=decode_stage(message.stage, "stage"),
        degraded_reasons=dict(message.degraded_reasons),
        paths=tuple(_decode(PathStatus, path) for path in message.paths),
    )


def _values(status: Any) -> dict[str, Any]:
    """The fields of a dataclass that a message of the same shape takes as they are."""
    values = {named.name: getattr(status, named.name) for named in fields(status)}
    return {name: value for name, value in values.items() if not isinstance(value, tuple | dict)}


def _decode(kind: type[_Kind], message: Message, **converted: Any) -> _Kind:
    """The dataclass of a message of the same shape; ``converted`` goes in place of its fields."""
    names = {named.name for named in fields(kind)} - converted.keys()  # type: ignore[arg-type]
    return kind(**{name: getattr(message, name) for name in names}, **converted)
