"""A finished rollout sequence and how several make one padded batch."""

from collections.abc import Sequence as Sequences
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foremoe.demo.task import PADDING


@dataclass(slots=True)
class Sequence:
    """One sampled answer.

    tokens: int64 ``[n]``, prompt and answer. expert_ids: int16 ``[n - 1, L, K]``: the last token is
    never fed to the model. advantage and old_log_probs come later; the latter are
    float64 ``[answer]``.
    """

    sequence_id: str
    tokens: NDArray[np.int64]
    prompt_length: int
    expert_ids: NDArray[np.int16]
    reward: float
    advantage: float = 0.0
    old_log_probs: NDArray[np.float64] | None = None

    @property
    def answer_length(self) -> int:
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded. tokens, targets: int64 ``[B, T]``; trained: bool ``[B, T]``, answer positions.

    expert_ids: int64 ``[B * T, L, K]``, -1 at padding. advantage: ``[B, 1]``.
    """

    tokens: Tensor
    targets: Tensor
    trained: Tensor
    present: Tensor
    expert_ids: Tensor
    advantage: Tensor

    @classmethod
    def of(cls, sequences: Sequences[Sequence]) -> "Batch":
        length = max(len(s.tokens) for s in sequences) - 1
        shape = (len(sequences), length)
        tokens, targets = np.full(shape, PADDING), np.full(shape, PADDING)
        trained, present = np.zeros(shape, bool), np.zeros(shape, bool)
        expert_ids = np.full((*shape, *sequences[0].expert_ids.shape[1:]), -1)
        for row, sequence in enumerate(sequences):
            fed = len(sequence.tokens) - 1
            tokens[row, :fed], targets[row, :fed] = sequence.tokens[:-1], sequence.tokens[1:]
            trained[row, sequence.prompt_length - 1 : fed] = True
            present[row, :fed] = True
            expert_ids[row, :fed] = sequence.expert_ids
        advantage = np.array([[s.advantage] for s in sequences])
        return cls(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            trained=torch.from_numpy(trained),
            present=torch.from_numpy(present),
            expert_ids=torch.from_numpy(expert_ids.reshape(-1, *expert_ids.shape[2:])),
            advantage=torch.from_numpy(advantage),
        )
