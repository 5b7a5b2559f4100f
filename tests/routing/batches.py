"""Random routing for tests: logits and top-k experts of every rank and micro-step, float64."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS, EXPERTS, TOP_K = (1, 4), 6, 2


@dataclass(frozen=True)
class Routing:
    """One layer's router output; ``logits`` is a leaf that collects the gradient."""

    logits: Tensor
    probabilities: Tensor
    expert_ids: Tensor

    @classmethod
    def of(cls, logits: Tensor, expert_ids: Tensor) -> "Routing":
        return cls(logits, F.softmax(logits, dim=-1), expert_ids)


def routing(layer: int, rank: int, micro_step: int) -> Routing:
    """Skewed, of different length on every rank and micro-step, the last token being padding."""
    generator = torch.Generator().manual_seed(1000 * layer + 10 * rank + micro_step)
    tokens = 5 + 3 * rank + micro_step
    logits = torch.randn(tokens, EXPERTS, generator=generator, dtype=torch.float64)
    logits += torch.arange(EXPERTS) * 0.4
    expert_ids = logits.topk(TOP_K).indices
    expert_ids[-1] = -1
    return Routing.of(logits.requires_grad_(), expert_ids)


def joined(parts: list[Routing]) -> Routing:
    """All parts as one batch, with a leaf of its own."""
    logits = torch.cat([part.logits.detach() for part in parts]).requires_grad_()
    return Routing.of(logits, torch.cat([part.expert_ids for part in parts]))
