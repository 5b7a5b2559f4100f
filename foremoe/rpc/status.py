"""A snapshot of what a daemon holds."""

from dataclasses import dataclass
from enum import StrEnum

from foremoe.rpc.stages import decode_stage, encode_stage
from foremoe.rpc.v1 import status_pb2
from foremoe.vocabulary import Stage


class StepState(StrEnum):
    """Where an RL step stands; foremoe.runtime.step has the edges."""

    COLLECTING = "collecting"
    SCHEDULED = "scheduled"
    PLANNED = "planned"
    EXECUTING = "executing"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class EpGroupStatus:
    """One EP group: its ranks, how many have registered, how many hold a plan stream."""

    ep_group: str
    ranks: int
    registered: int
    streaming: int
    spare_slots: int


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage of one EP group; imbalances and replicas are means over micro-steps and layers."""

    ep_group: str
    stage: Stage
    micro_steps: int
    planned: int
    imbalance_before: float
    imbalance_after: float
    replicas: float
    degraded: int
    planning_seconds: float


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One unreleased step."""

    step: int
    state: StepState
    sequences: int
    stages: tuple[StageStatus, ...]


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """The daemon as a whole; steps are ordered, oldest first."""

    version: str
    daemon_id: str
    pid: int
    uptime_seconds: float
    stored_bytes: int
    stored_bytes_limit: int
    ep_groups: tuple[EpGroupStatus, ...]
    steps: tuple[StepStatus, ...]


_STATES = {
    StepState.COLLECTING: status_pb2.STEP_STATE_COLLECTING,
    StepState.SCHEDULED: status_pb2.STEP_STATE_SCHEDULED,
    StepState.PLANNED: status_pb2.STEP_STATE_PLANNED,
    StepState.EXECUTING: status_pb2.STEP_STATE_EXECUTING,
    StepState.RELEASED: status_pb2.STEP_STATE_RELEASED,
}
_STATE_NAMES = {int(value): state for state, value in _STATES.items()}


def encode_status(status: RuntimeStatus) -> status_pb2.GetStatusResponse:
    return status_pb2.GetStatusResponse(
        version=status.version,
        daemon_id=status.daemon_id,
        pid=status.pid,
        uptime_seconds=status.uptime_seconds,
        stored_bytes=status.stored_bytes,
        stored_bytes_limit=status.stored_bytes_limit,
        ep_groups=[_encode_group(group) for group in status.ep_groups],
        steps=[
            status_pb2.StepStatus(
                step=step.step,
                state=_STATES[step.state],
                sequences=step.sequences,
                stages=[_encode_stage(stage) for stage in step.stages],
            )
            for step in status.steps
        ],
    )


def decode_status(message: status_pb2.GetStatusResponse) -> RuntimeStatus:
    return RuntimeStatus(
        version=message.version,
        daemon_id=message.daemon_id,
        pid=message.pid,
        uptime_seconds=message.uptime_seconds,
        stored_bytes=message.stored_bytes,
        stored_bytes_limit=message.stored_bytes_limit,
        ep_groups=tuple(_decode_group(group) for group in message.ep_groups),
        steps=tuple(
            StepStatus(
                step=step.step,
                state=_STATE_NAMES[int(step.state)],
                sequences=step.sequences,
                stages=tuple(_decode_stage(stage) for stage in step.stages),
            )
            for step in message.steps
        ),
    )


def _encode_group(group: EpGroupStatus) -> status_pb2.EpGroupStatus:
    return status_pb2.EpGroupStatus(
        ep_group=group.ep_group,
        ranks=group.ranks,
        registered=group.registered,
        streaming=group.streaming,
        spare_slots=group.spare_slots,
    )


def _decode_group(message: status_pb2.EpGroupStatus) -> EpGroupStatus:
    return EpGroupStatus(
        ep_group=message.ep_group,
        ranks=message.ranks,
        registered=message.registered,
        streaming=message.streaming,
        spare_slots=message.spare_slots,
    )


def _encode_stage(stage: StageStatus) -> status_pb2.StageStatus:
    return status_pb2.StageStatus(
        ep_group=stage.ep_group,
        stage=encode_stage(stage.stage),
        micro_steps=stage.micro_steps,
        planned=stage.planned,
        imbalance_before=stage.imbalance_before,
        imbalance_after=stage.imbalance_after,
        replicas=stage.replicas,
        degraded=stage.degraded,
        planning_seconds=stage.planning_seconds,
    )


def _decode_stage(message: status_pb2.StageStatus) -> StageStatus:
    return StageStatus(
        ep_group=message.ep_group,
        stage=decode_stage(message.stage, "stage"),
        micro_steps=message.micro_steps,
        planned=message.planned,
        imbalance_before=message.imbalance_before,
        imbalance_after=message.imbalance_after,
        replicas=message.replicas,
        degraded=message.degraded,
        planning_seconds=message.planning_seconds,
    )
