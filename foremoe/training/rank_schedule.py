"""A schedule from the ranks themselves, where micro-batches are split inside the workers."""

from collections.abc import Sequence

import torch.distributed as dist

from foremoe.client.controller import ControllerClient
from foremoe.errors import ForemoeError, InvalidInputError
from foremoe.rpc.schedule import MicroStepSchedule
from foremoe.vocabulary import Stage

# One rank's micro-steps: mini-batch, and the ids of the sequences the rank processes.
OwnMicroSteps = Sequence[tuple[int, Sequence[str]]]


def submit_from_ranks(
    controller: ControllerClient,
    group: dist.ProcessGroup,
    ep_group: str,
    step: int,
    stage: Stage,
    own: OwnMicroSteps,
) -> None:
    """Put the ranks' micro-steps together and submit them as one schedule.

    Collective over the EP group (gloo, or another that takes CPU tensors), after every rank has
    split its batch; a padding micro-batch is one with no sequences. The group's first rank asks
    the daemon; what it answers, or that the ranks disagree in the number of micro-steps or their
    mini-batches, is raised on all ranks alike: catch ForemoeError and train unbalanced.
    """
    gathered: list[list[tuple[int, list[str]]]] = [[] for _ in range(group.size())]
    mine = [(mini_batch, list(sequences)) for mini_batch, sequences in own]
    dist.all_gather_object(gathered, mine, group=group)
    answer: list[ForemoeError | None] = [None]
    if group.rank() == 0:
        try:
            controller.submit_schedule(ep_group, step, stage, _merged(gathered))
        except ForemoeError as error:
            answer = [error]
    dist.broadcast_object_list(answer, group=group, group_src=0)
    if answer[0] is not None:
        raise answer[0]


def _merged(gathered: Sequence[Sequence[tuple[int, list[str]]]]) -> list[MicroStepSchedule]:
    batches = [[mini_batch for mini_batch, _ in own] for own in gathered]
    for rank, own in enumerate(batches):
        if own != batches[0]:
            raise InvalidInputError(
                f"rank {rank} has micro-steps of mini-batches {own}, rank 0 {batches[0]}; all "
                "ranks of an EP group run the same micro-steps"
            )
    return [
        MicroStepSchedule(mini_batch, [own[index][1] for own in gathered])
        for index, mini_batch in enumerate(batches[0])
    ]
