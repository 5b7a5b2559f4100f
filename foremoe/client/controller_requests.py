"""What a controller asks, checked and encoded; the sync and the async client send it."""

from collections.abc import Sequence

from foremoe.limits import MAX_STEP, check_name, check_range
from foremoe.planner.packing import UNLIMITED, AttentionCost
from foremoe.rpc.proposal import ProposalRequest, encode_proposal_request
from foremoe.rpc.schedule import MicroStepSchedule, check_schedule, encode_micro_steps
from foremoe.rpc.stages import encode_stage
from foremoe.rpc.v1.schedule_pb2 import (
    ProposeScheduleRequest,
    ReleaseStepRequest,
    SubmitScheduleRequest,
)
from foremoe.vocabulary import Stage


def proposal_request(
    ep_group: str,
    step: int,
    token_budget: int,
    mini_batches: Sequence[Sequence[str]],
    max_sequences: int | None,
    attention: AttentionCost | None,
) -> ProposeScheduleRequest:
    """Raises InvalidInputError as ProposalRequest does; None is no limit, and no attention cost."""
    most = UNLIMITED if max_sequences is None else max_sequences
    return encode_proposal_request(
        ProposalRequest(
            ep_group, step, token_budget, most, attention or AttentionCost(), mini_batches
        )
    )


def submit_request(
    ep_group: str, step: int, stage: Stage, micro_steps: Sequence[MicroStepSchedule]
) -> SubmitScheduleRequest:
    """Raises InvalidInputError, naming the field, for a schedule that cannot be."""
    check_name(ep_group, "ep_group")
    check_range(step, 0, MAX_STEP, "step")
    check_schedule(micro_steps, len(micro_steps[0].ranks) if micro_steps else 0)
    return SubmitScheduleRequest(
        ep_group=ep_group,
        step=step,
        stage=encode_stage(stage),
        micro_steps=encode_micro_steps(micro_steps),
    )


def release_request(step: int) -> ReleaseStepRequest:
    """Raises InvalidInputError for a step that cannot be."""
    check_range(step, 0, MAX_STEP, "step")
    return ReleaseStepRequest(step=step)
