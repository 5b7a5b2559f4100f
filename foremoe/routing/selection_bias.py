"""Loss-free balancing: a bias that decides which experts are chosen, never how they are weighted.

After each optimizer step the bias of overloaded experts falls and that of the others rises by a
fixed rate (arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.errors import InvalidInputError
from foremoe.routing.balance_losses import count_experts


def select_experts(scores: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Experts with the largest ``scores + bias`` and their scores without it.

    scores: ``[T, E]``. bias: ``[E]``. Returns int64 ids and scores, both ``[T, K]``.
    """
    chosen = (scores.detach() + bias).topk(top_k, dim=-1).indices
    return chosen, scores.gather(-1, chosen)


class BiasBalancer:
    """Counts a mini-batch's logical tokens, once each, and moves the biases after the step.

    biases: by layer, ``[E]``, changed in place (a router's buffer, say). rate: size of a move.
    group: ranks that hold different tokens; None is this process alone.
    """

    def __init__(
        self,
        biases: Mapping[int, Tensor],
        rate: float = 1e-3,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not biases or rate <= 0:
            raise InvalidInputError("bias balancing: needs a layer's bias and a rate above 0")
        self._biases = dict(biases)
        self._rate = rate
        self._group = group
        self._micro_step: int | None = None
        self._counts: dict[tuple[int, int], Tensor] = {}

    @contextmanager
    def micro_step(self, index: int) -> Iterator[None]:
        """Count the routing inside as micro-step ``index`` of the mini-batch.

        Counting one again replaces it: a forward pass that is repeated (activation checkpointing)
        counts once. Wrap the update's micro-steps only; recompute sees the same tokens.
        """
        self._micro_step = index
        try:
            yield
        finally:
            self._micro_step = None

    def observe(
        self, layer: int, logits: Tensor, probabilities: Tensor, expert_ids: Tensor
    ) -> None:
        """A router's output; ``expert_ids [T, K]`` are logical experts, -1 for padding."""
        del logits, probabilities
        if self._micro_step is not None and layer in self._biases:
            experts = len(self._biases[layer])
            self._counts[self._micro_step, layer] = count_experts(expert_ids, experts)

    def update(self) -> Mapping[int, Tensor]:
        """Move the biases, all ranks alike; returns the mini-batch's counts ``[E]`` by layer.

        Collective over the group. Call it after the optimizer step.
        """
        counts = {
            layer: torch.zeros(len(bias), dtype=torch.int64, device=bias.device)
            for layer, bias in self._biases.items()
        }
        for (_, layer), count in self._counts.items():
            counts[layer] += count.to(counts[layer].device)
        self._counts.clear()
        if self._group is not None:
            together = torch.cat(list(counts.values()))
            dist.all_reduce(together, group=self._group)
            split = together.split([len(count) for count in counts.values()])
            counts = dict(zip(counts, split, strict=True))
        for layer, count in counts.items():
            # Whole numbers: which side of the mean an expert is on is the same on every rank.
            below = torch.sign(count.sum() - count * len(count))
            self._biases[layer].add_(below.to(self._biases[layer].dtype), alpha=self._rate)
        return counts
