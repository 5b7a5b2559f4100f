"""GRPO: advantages within a prompt's group of samples, clipped policy gradient per token."""

from collections.abc import Sequence as Sequences

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foremoe.demo.sequence import Batch, Sequence


def assign_advantages(sequences: Sequences[Sequence], samples_per_prompt: int) -> None:
    """Reward minus the group's mean, over its deviation; groups are consecutive (DeepSeekMath)."""
    for start in range(0, len(sequences), samples_per_prompt):
        group = sequences[start : start + samples_per_prompt]
        rewards = np.array([sequence.reward for sequence in group])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for sequence, advantage in zip(group, advantages.tolist(), strict=True):
            sequence.advantage = advantage


def log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability of each target token: ``[B, T]``."""
    logits = model(input_ids=batch.tokens, attention_mask=batch.present.long()).logits
    return -F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")


def policy_loss(new: Tensor, old: Tensor, batch: Batch, clip: float, tokens: float) -> Tensor:
    """Clipped surrogate, summed over the batch's answer tokens, divided by ``tokens`` (PPO, GRPO).

    new, old: ``[B, T]``. tokens: answer tokens of the whole mini-batch on all ranks over the number
    of ranks, so that accumulating micro-steps and averaging ranks gives the mini-batch's mean.
    """
    ratio = torch.exp(new - old)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratio * batch.advantage, clipped * batch.advantage)
    return -(gain * batch.trained).sum() / tokens
