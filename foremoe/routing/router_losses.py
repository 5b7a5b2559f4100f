"""Router losses of a whole model: observed layer by layer, synchronised in one small collective.

losses = RouterLosses(layers, num_experts, LossWeights(global_batch=1e-3), group)
replay.observers.append(losses)
for batch in micro_batches:
    with losses.observing():
        loss = model(batch)
    (loss + losses.total()).backward()
optimizer.step()
losses.reset()
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.errors import InvalidInputError
from foremoe.routing.balance_losses import (
    balance_loss,
    count_experts,
    micro_batch_loss,
    routed_tokens,
    z_loss,
)


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Factors of the losses' means over layers; 0 leaves a loss out.

    global_batch: balance against counts of the whole group and, over gradient accumulation, of all
    micro-steps so far. micro_batch: balance of each micro-batch by itself. z: size of the logits.
    """

    global_batch: float = 0.0
    micro_batch: float = 0.0
    z: float = 0.0


@dataclass(frozen=True, slots=True)
class _Observed:
    logits: Tensor
    probabilities: Tensor
    expert_ids: Tensor


class RouterLosses:
    """Observes every layer's routing in a forward pass and adds up the losses.

    Losses are scaled so that their mean over the ranks of ``group`` (what data-parallel training
    makes of gradients) is the loss of the group's whole micro-step, whatever the token counts.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        num_experts: int,
        weights: LossWeights,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """group: ranks whose batches make up a micro-step; None is this process alone."""
        self.layers = layers
        self.num_experts = num_experts
        self.weights = weights
        self._group = group
        self._observing = False
        self._observed: dict[int, _Observed] = {}
        self._buffer = torch.zeros(len(layers), num_experts, dtype=torch.int64)
        self._expected: Tensor | None = None

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Observe the forward pass inside; not the one that activation checkpointing repeats."""
        self._observed.clear()
        self._observing = True
        try:
            yield
        finally:
            self._observing = False

    def observe(
        self, layer: int, logits: Tensor, probabilities: Tensor, expert_ids: Tensor
    ) -> None:
        """A router's output: ``[T, E]``, ``[T, E]`` and the experts in use ``[T, K]``."""
        if self._observing and layer in self.layers:
            self._observed[layer] = _Observed(logits, probabilities, expert_ids)

    def expect(self, counts: Mapping[int, Tensor]) -> None:
        """Balance against these counts ``[E]`` by layer instead of those met so far.

        With routing replay the counts of a mini-batch are known before its first micro-step: its
        micro-steps then add up to exactly the loss of the global batch.
        """
        self._expected = torch.stack([counts[layer] for layer in self.layers])

    def total(self) -> Tensor:
        """The weighted losses of the forward pass just observed; collective over the group.

        Raises InvalidInputError when a layer was not reached.
        """
        missing = [layer for layer in self.layers if layer not in self._observed]
        if missing:
            raise InvalidInputError(
                f"router losses: no forward pass reached the routers of {missing}"
            )
        observed = [self._observed[layer] for layer in self.layers]
        self._observed = {}
        counts, tokens = self._synchronise(observed)
        self._buffer = self._buffer.to(counts.device) + counts
        met = self._buffer if self._expected is None else self._expected
        total = observed[0].logits.new_zeros(())
        for position, one in enumerate(observed):
            total = total + self._weighted(one, met[position], tokens)
        return total / len(self.layers)

    def reset(self) -> None:
        """Forget the counts met so far and expected; call after each optimizer step."""
        self._buffer.zero_()
        self._expected = None

    def _weighted(self, one: _Observed, counts: Tensor, tokens: Tensor) -> Tensor:
        total = one.logits.new_zeros(())
        if self.weights.global_batch:
            loss = balance_loss(one.probabilities, one.expert_ids, counts, tokens)
            total = total + self.weights.global_batch * loss
        if self.weights.micro_batch:
            loss = micro_batch_loss(one.probabilities, one.expert_ids)
            total = total + self.weights.micro_batch * loss
        if self.weights.z:
            total = total + self.weights.z * z_loss(one.logits, one.expert_ids, tokens)
        return total

    def _synchronise(self, observed: list[_Observed]) -> tuple[Tensor, Tensor]:
        """Counts of the group's micro-step, int64 ``[L, E]``, and its routed tokens per rank."""
        counts = torch.stack([count_experts(one.expert_ids, self.num_experts) for one in observed])
        tokens = routed_tokens(observed[0].expert_ids).sum()
        ranks = 1
        if self._group is not None:
            ranks = self._group.size()
            both = torch.cat([counts.flatten(), tokens.view(1)])
            dist.all_reduce(both, group=self._group)
            counts, tokens = both[:-1].view_as(counts), both[-1]
        return counts, tokens.clamp(min=1) / ranks
