"""The schedule of a stage: which sequences each rank processes in each micro-step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foremoe.errors import InvalidInputError
from foremoe.limits import check_range
from foremoe.rpc.v1.schedule_pb2 import MicroStep, RankSequences

MAX_MICRO_STEPS = 65536


@dataclass(frozen=True, slots=True)
class MicroStepSchedule:
    """One micro-step: its mini-batch, and the sequence ids of every rank in rank order."""

    mini_batch: int
    ranks: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", tuple(tuple(ids) for ids in self.ranks))


def check_schedule(micro_steps: Sequence[MicroStepSchedule], ranks: int) -> None:
    """Raises InvalidInputError, naming the field, unless the schedule fits a group of ``ranks``."""
    check_range(len(micro_steps), 1, MAX_MICRO_STEPS, "micro_steps (length)")
    earlier = 0
    for index, micro_step in enumerate(micro_steps):
        field = f"micro_steps[{index}]"
        if len(micro_step.ranks) != ranks:
            raise InvalidInputError(
                f"{field}.ranks: expected {ranks} entries, one per rank of the EP group, "
                f"got {len(micro_step.ranks)}"
            )
        if micro_step.mini_batch < earlier:
            raise InvalidInputError(
                f"{field}.mini_batch: {micro_step.mini_batch} after {earlier}; "
                "mini-batches must not decrease"
            )
        earlier = micro_step.mini_batch
        check_range(earlier, 0, 2**31 - 1, f"{field}.mini_batch")
        _check_no_repeats(micro_step, field)


def _check_no_repeats(micro_step: MicroStepSchedule, field: str) -> None:
    seen: set[str] = set()
    for rank, ids in enumerate(micro_step.ranks):
        for sequence_id in ids:
            if sequence_id in seen:
                raise InvalidInputError(
                    f"{field}.ranks[{rank}]: sequence {sequence_id!r} is in this micro-step twice"
                )
            seen.add(sequence_id)


def encode_micro_steps(micro_steps: Sequence[MicroStepSchedule]) -> list[MicroStep]:
    return [
        MicroStep(
            mini_batch=micro_step.mini_batch,
            ranks=[RankSequences(sequence_ids=ids) for ids in micro_step.ranks],
        )
        for micro_step in micro_steps
    ]


def decode_micro_steps(messages: Iterable[MicroStep]) -> tuple[MicroStepSchedule, ...]:
    """What the messages say; ``check_schedule`` tells whether it makes sense."""
    return tuple(
        MicroStepSchedule(micro_step.mini_batch, [rank.sequence_ids for rank in micro_step.ranks])
        for micro_step in messages
    )
