"""Which sequences each rank processes in each micro-step."""

from collections.abc import Sequence as Sequences

import numpy as np
from numpy.typing import NDArray

from foremoe.client.controller import MicroStepSchedule
from foremoe.demo.options import DemoOptions
from foremoe.demo.sequence import Sequence

Schedule = list[list[list[Sequence]]]  # [micro-step][rank] -> sequences


def update_schedule(sequences: Sequences[Sequence], options: DemoOptions) -> Schedule:
    """Sequences in order, cut into mini-batches' micro-steps, dealt to the ranks in turn."""
    return _deal(sequences, options.mini_batches * options.micro_steps_per_mini_batch, options)


def recompute_schedule(sequences: Sequences[Sequence], options: DemoOptions) -> Schedule:
    """As for update, but forward only needs less memory: micro-steps are twice as large."""
    return _deal(sequences, options.recompute_micro_steps, options)


def message(schedule: Schedule, mini_batches: int) -> list[MicroStepSchedule]:
    """The schedule as the runtime takes it."""
    per_mini_batch = len(schedule) // mini_batches
    return [
        MicroStepSchedule(
            mini_batch=index // per_mini_batch,
            ranks=[[sequence.sequence_id for sequence in dealt] for dealt in ranks],
        )
        for index, ranks in enumerate(schedule)
    ]


def load_of(schedule: Schedule, experts: int) -> NDArray[np.int64]:
    """Pairs by micro-step, layer, source rank and expert: int64 ``[M, L, P, E]``."""
    layers = schedule[0][0][0].expert_ids.shape[1]
    load = np.zeros((len(schedule), layers, len(schedule[0]), experts), np.int64)
    for index, ranks in enumerate(schedule):
        for rank, sequences in enumerate(ranks):
            for sequence in sequences:
                for layer in range(layers):
                    ids = sequence.expert_ids[:, layer].ravel()
                    load[index, layer, rank] += np.bincount(ids, minlength=experts)
    return load


def _deal(sequences: Sequences[Sequence], micro_steps: int, options: DemoOptions) -> Schedule:
    size = len(sequences) // micro_steps
    chunks = [sequences[i * size : (i + 1) * size] for i in range(micro_steps)]
    return [
        [list(chunk[rank :: options.ranks]) for rank in range(options.ranks)] for chunk in chunks
    ]
