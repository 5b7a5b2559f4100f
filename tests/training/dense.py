"""The dense, single-process truth that expert parallelism is compared with: float64, no tricks."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A stack of MoE layers trained for some mini-batches; everything follows from ``seed``.

    foresight: share of pairs whose actual expert is the one the plan was made for.
    """

    seed: int
    ranks: int
    layers: int = 3
    experts: int = 8
    top_k: int = 2
    hidden: int = 12
    expert_size: int = 10
    spare_slots: int = 2
    mini_batches: int = 2
    micro_steps: int = 3
    tokens: int = 23
    foresight: float = 1.0
    layer_ids: tuple[int, ...] = field(default=(1, 4, 5))

    @property
    def total(self) -> int:
        return self.mini_batches * self.micro_steps

    def weights(self, name: str, *shape: int) -> Tensor:
        generator = np.random.default_rng([self.seed, sum(map(ord, name))])
        return torch.from_numpy(generator.normal(size=shape) / np.sqrt(shape[-1]))

    def expert_weights(self, layer: int) -> dict[str, Tensor]:
        sizes = self.experts, self.expert_size, self.hidden
        return {
            "gate_up": self.weights(f"g{layer}", sizes[0], 2 * sizes[1], sizes[2]),
            "down": self.weights(f"d{layer}", sizes[0], sizes[2], sizes[1]),
        }

    def router(self, layer: int) -> Tensor:
        return self.weights(f"r{layer}", self.experts, self.hidden)

    def inputs(self, rank: int, micro_step: int) -> Tensor:
        """Token counts differ between ranks; one rank has none in the second micro-step."""
        count = self.tokens + 5 * rank if (rank, micro_step) != (1, 1) else 0
        return self.weights(f"x{rank},{micro_step}", max(count, 1), self.hidden)[:count]

    def routing(self, rank: int, micro_step: int) -> NDArray[np.int64]:
        """Skewed experts ``[T, L, K]``, distinct within a token."""
        generator = np.random.default_rng([self.seed, 77, rank, micro_step])
        heat = generator.dirichlet(np.full(self.experts, 0.4), self.layers) + 1e-3
        tokens = len(self.inputs(rank, micro_step))
        noise = generator.gumbel(size=(tokens, self.layers, self.experts)) + np.log(heat)
        return np.argsort(-noise, axis=-1)[..., : self.top_k].astype(np.int64)

    def actual_routing(self, rank: int, micro_step: int) -> NDArray[np.int64]:
        """What the model really does; differs from ``routing`` when foresight is below 1."""
        other = Case(self.seed + 1, self.ranks).routing(rank, micro_step)
        generator = np.random.default_rng([self.seed, 5, rank, micro_step])
        kept = generator.random((len(other), self.layers, 1)) < self.foresight
        return np.where(kept, self.routing(rank, micro_step), other)


def train_dense(case: Case) -> dict[str, list[Tensor]]:
    """Outputs of every micro-step (ranks concatenated) and gradients of every mini-batch."""
    weights = [{"router": case.router(i), **case.expert_weights(i)} for i in range(case.layers)]
    leaves = [tensor.requires_grad_() for layer in weights for tensor in layer.values()]
    outputs, gradients = [], []
    for index in range(case.total):
        hidden = torch.cat([case.inputs(rank, index) for rank in range(case.ranks)])
        routing = np.concatenate([case.actual_routing(rank, index) for rank in range(case.ranks)])
        for position, layer in enumerate(weights):
            hidden = hidden + moe(hidden, torch.from_numpy(routing[:, position]), layer)
        outputs.append(hidden.detach())
        (hidden**2).sum().backward()
        if index % case.micro_steps == case.micro_steps - 1:
            gradients += [leaf.grad.clone() for leaf in leaves]
            with torch.no_grad():
                for leaf in leaves:
                    leaf -= 0.003 * leaf.grad
                    leaf.grad = None
    return {"outputs": outputs, "gradients": gradients}


def moe(hidden: Tensor, expert_ids: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """One MoE layer, expert by expert."""
    scores = F.softmax(hidden @ weights["router"].t(), dim=-1).gather(-1, expert_ids)
    scores = scores / scores.sum(dim=-1, keepdim=True)
    output = torch.zeros_like(hidden)
    for expert in range(len(weights["down"])):
        chosen = (scores * (expert_ids == expert)).sum(dim=-1, keepdim=True)
        gate, up = (hidden @ weights["gate_up"][expert].t()).chunk(2, dim=-1)
        output = output + chosen * ((F.silu(gate) * up) @ weights["down"][expert].t())
    return output
