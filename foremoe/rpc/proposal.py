"""A schedule that the daemon proposes: what to pack, and the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from foremoe.errors import InvalidInputError
from foremoe.limits import MAX_STEP, check_name, check_range
from foremoe.planner.packing import UNLIMITED, AttentionCost
from foremoe.rpc.schedule import MicroStepSchedule, decode_micro_steps, encode_micro_steps
from foremoe.rpc.v1 import schedule_pb2


@dataclass(frozen=True, slots=True)
class ProposalRequest:
    """What to pack for an EP group, from the foresight of a step.

    mini_batches: sequence ids by mini-batch, in order; none for one of all sequences of the step.
    token_budget, max_sequences: most a rank is given in one micro-step.

    Raises InvalidInputError, naming the field, when a value is out of range, a mini-batch is empty
    or a sequence is named twice.
    """

    ep_group: str
    step: int
    token_budget: int
    max_sequences: int
    attention: AttentionCost
    mini_batches: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        batches = tuple(tuple(sequence_ids) for sequence_ids in self.mini_batches)
        object.__setattr__(self, "mini_batches", batches)
        check_name(self.ep_group, "ep_group")
        check_range(self.step, 0, MAX_STEP, "step")
        check_range(self.token_budget, 1, UNLIMITED, "token_budget")
        check_range(self.max_sequences, 1, UNLIMITED, "max_sequences")
        seen: set[str] = set()
        for index, sequence_ids in enumerate(batches):
            if not sequence_ids:
                raise InvalidInputError(f"mini_batches[{index}]: names no sequence")
            for sequence_id in sequence_ids:
                if sequence_id in seen:
                    raise InvalidInputError(
                        f"mini_batches[{index}]: sequence {sequence_id[:80]!r} is named twice"
                    )
                seen.add(sequence_id)


@dataclass(frozen=True, slots=True)
class ScheduleProposal:
    """Micro-steps to submit as they are, and what they cost.

    cost: (token, expert) pairs on the slowest rank of each layer, attention included, summed over
    layers and micro-steps. length_only_cost: of the best packing by length in as few micro-steps.
    bound: what no packing costs less than, with experts where they are.
    """

    micro_steps: tuple[MicroStepSchedule, ...]
    cost: int
    length_only_cost: int
    bound: int


def encode_proposal_request(request: ProposalRequest) -> schedule_pb2.ProposeScheduleRequest:
    return schedule_pb2.ProposeScheduleRequest(
        ep_group=request.ep_group,
        step=request.step,
        token_budget=request.token_budget,
        max_sequences=0 if request.max_sequences == UNLIMITED else request.max_sequences,
        attention=schedule_pb2.AttentionCost(
            alpha=request.attention.alpha, beta=request.attention.beta
        ),
        mini_batches=[
            schedule_pb2.MiniBatch(sequence_ids=sequence_ids)
            for sequence_ids in request.mini_batches
        ],
    )


def decode_proposal_request(message: schedule_pb2.ProposeScheduleRequest) -> ProposalRequest:
    """Raises InvalidInputError as ProposalRequest and AttentionCost do."""
    return ProposalRequest(
        ep_group=message.ep_group,
        step=message.step,
        token_budget=message.token_budget,
        max_sequences=message.max_sequences or UNLIMITED,
        attention=AttentionCost(message.attention.alpha, message.attention.beta),
        mini_batches=[mini_batch.sequence_ids for mini_batch in message.mini_batches],
    )


def encode_proposal(proposal: ScheduleProposal) -> schedule_pb2.ProposeScheduleResponse:
    return schedule_pb2.ProposeScheduleResponse(
        micro_steps=encode_micro_steps(proposal.micro_steps),
        cost=proposal.cost,
        length_only_cost=proposal.length_only_cost,
        bound=proposal.bound,
    )


def decode_proposal(message: schedule_pb2.ProposeScheduleResponse) -> ScheduleProposal:
    return ScheduleProposal(
        decode_micro_steps(message.micro_steps),
        message.cost,
        message.length_only_cost,
        message.bound,
    )
