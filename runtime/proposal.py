"""A schedule proposed from a step's foresight; made on a worker thread."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError, UnknownError
from foremoe.planner.order import MOST_MICRO_STEPS, compared_layers, similar_order
from foremoe.planner.packing import Packing, PackingProblem, propose_schedule, rank_pairs
from foremoe.rpc.proposal import ProposalRequest, ScheduleProposal
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.schedule import MicroStepSchedule, check_schedule
from foremoe.runtime.groups import EpGroup
from foremoe.runtime.planning import layer_rows
from foremoe.runtime.step import Step
from foremoe.runtime.step_homes import StepHomes
from foremoe.runtime.store import SequenceForesight

SEQUENCE_OVERHEAD_BYTES = 1024  # ids, bins and list entries of one sequence, rounded up


@dataclass(frozen=True, slots=True, eq=False)
class ProposalJob:
    """All a worker needs; nothing in it changes while the worker reads it.

    sequence_ids, sequences: of all mini-batches, one after the other. mini_batch: int64 ``[S]``.
    rows: the EP group's layers as rows of the histograms, int64 ``[L]``.
    homes: those of the step, if it has any yet, else those that its whole load asks for.
    """

    request: ProposalRequest
    group: RankRegistration
    sequence_ids: list[str]
    sequences: list[SequenceForesight]
    mini_batch: NDArray[np.int64]
    rows: NDArray[np.int64]
    homes: StepHomes

    @property
    def work_bytes(self) -> int:
        """Most bytes that packing takes; there are at most as many bins as sequences."""
        sequences, ranks, layers = len(self.sequences), self.group.ranks, len(self.rows)
        pair_bytes = 16 * sequences * ranks * layers
        bin_bytes = 32 * (sequences + ranks) * layers
        compared = len(compared_layers(layers, self.group.num_experts)) * self.group.num_experts
        order_bytes = 24 * sequences * compared + 8 * min(sequences, MOST_MICRO_STEPS) ** 2
        home_bytes = 16 * layers * self.group.num_experts
        overhead = sequences * SEQUENCE_OVERHEAD_BYTES
        return pair_bytes + bin_bytes + order_bytes + home_bytes + overhead

    def propose(self) -> ScheduleProposal:
        """Pack; raises InvalidInputError when a sequence or the packing is too long."""
        request, group = self.request, self.group
        tokens = np.array([sequence.tokens for sequence in self.sequences], np.int64)
        longest = int(tokens.argmax())
        if tokens[longest] > request.token_budget:
            raise InvalidInputError(
                f"token_budget: sequence {self.sequence_ids[longest][:80]!r} has "
                f"{tokens[longest]} tokens, the budget of a rank is {request.token_budget}; "
                "raise it"
            )
        histograms = (sequence.histogram[self.rows] for sequence in self.sequences)
        packing = propose_schedule(
            PackingProblem(
                tokens,
                rank_pairs(histograms, self.homes.choose(), group.ranks),
                self.mini_batch,
                request.token_budget,
                request.max_sequences,
                request.attention,
            )
        )
        packed = packing.micro_steps()
        micro_steps = tuple(
            MicroStepSchedule(
                int(packing.mini_batch[place]),
                [[self.sequence_ids[index] for index in held] for held in packed[place]],
            )
            for place in self._order(packing)
        )
        check_schedule(micro_steps, group.ranks)
        return ScheduleProposal(micro_steps, packing.cost, packing.length_only_cost, packing.bound)

    def _order(self, packing: Packing) -> NDArray[np.int64]:
        """Micro-steps with alike loads in a row, within their mini-batch."""
        rows = self.rows[compared_layers(len(self.rows), self.group.num_experts)]
        shape = len(packing.mini_batch), len(rows), self.group.num_experts
        tokens = np.zeros(shape, np.int64)
        for micro_step, sequence in zip(packing.micro_step, self.sequences, strict=True):
            tokens[micro_step] += sequence.histogram[rows]
        return similar_order(tokens, packing.mini_batch)


def proposal_job(request: ProposalRequest, group: EpGroup, step: Step) -> ProposalJob:
    """Look up all that the request names; ``step`` is left as it is.

    Raises UnknownError for a sequence without foresight, InvalidInputError when the foresight is
    of another model than the group's.
    """
    held = step.foresight.sequences
    mini_batches = request.mini_batches or [sorted(held)]  # whatever the order they came in
    for index, sequence_ids in enumerate(mini_batches):
        for sequence_id in sequence_ids:
            if sequence_id not in held:
                raise UnknownError(
                    f"mini_batches[{index}]: sequence {sequence_id[:80]!r} has no foresight in "
                    f"step {request.step}; upload it first"
                )
    rows = layer_rows(step.foresight.header, group.description)
    sequence_ids = [sequence_id for names in mini_batches for sequence_id in names]
    sequences = [held[sequence_id] for sequence_id in sequence_ids]
    homes = step.homes.get(request.ep_group)
    if homes is None:
        histograms = [sequence.histogram for sequence in sequences]
        homes = StepHomes(group.description, group.home, [[histograms]], rows)
    return ProposalJob(
        request,
        group.description,
        sequence_ids,
        sequences,
        np.repeat(np.arange(len(mini_batches)), [len(names) for names in mini_batches]),
        rows,
        homes,
    )
