"""Experts of Transformers' models: which parameters they have and what they compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foremoe.errors import InvalidInputError
from foremoe.routing.balance_losses import count_experts
from foremoe.training.expert_function import Differentiated, ExpertFunction, GatedMlp
from foremoe.training.expert_parallel import weighted_sum

_GATED = {"gate_up": "gate_up_proj", "down": "down_proj"}
_CLAMPED = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")


@dataclass(frozen=True, slots=True)
class ExpertKind:
    """parameters: our name -> the module's. function: what one expert computes with them."""

    parameters: Mapping[str, str]
    function: ExpertFunction

    def tensors(self, experts: nn.Module) -> dict[str, Tensor]:
        """The module's current tensors ``[E / P, ...]``; local ones inside its forward."""
        return {name: getattr(experts, attribute) for name, attribute in self.parameters.items()}


def whole_experts(
    experts: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """An experts function for Transformers: all of ``experts`` are on this rank.

    hidden_states: ``[T, H]``. top_k_index, top_k_weights: ``[T, K]``; a pair whose id is no expert
    (a replay's padding, what other expert-parallel implementations mask) is left out. Returns
    ``[T, H]``. Raises InvalidInputError for experts of a kind that is not known.
    """
    kind = kind_of(experts)
    tensors = kind.tensors(experts)
    num_experts = len(next(iter(tensors.values())))
    ids = top_k_index.reshape(-1)
    ids = ids.masked_fill(ids >= num_experts, -1)
    pair = ids.argsort(stable=True)[(ids < 0).sum() :]
    rows = hidden_states.index_select(0, pair // top_k_index.shape[-1])
    counts: list[int] = count_experts(ids, num_experts).tolist()
    return weighted_sum(kind.function.at_home(rows, counts, tensors), pair, top_k_weights)


def kind_of(experts: nn.Module) -> ExpertKind:
    """Fused silu-gated experts without biases, or gpt-oss's; InvalidInputError for others."""
    module: Any = experts
    shapes = {name: tuple(p.shape) for name, p in experts.named_parameters(recurse=False)}
    activation = type(getattr(experts, "act_fn", None)).__name__
    three = all(len(shapes.get(name, ())) == 3 for name in _GATED.values())
    if set(shapes) == set(_GATED.values()) and three and activation.startswith("SiLU"):
        return ExpertKind(_GATED, GatedMlp())
    if set(shapes) == set(_CLAMPED) and three and hasattr(module, "alpha"):
        function = partial(_clamped_mlp, alpha=float(module.alpha), limit=float(module.limit))
        return ExpertKind({name: name for name in _CLAMPED}, Differentiated(function))
    raise InvalidInputError(
        f"foremoe: experts with parameters {shapes} and activation {activation} are not supported; "
        "they must be gate_up_proj [E, 2I, H] and down_proj [E, H, I] with SiLU, or gpt-oss's"
    )


def _clamped_mlp(weights: Mapping[str, Tensor], rows: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss: gate and up interleaved, clamped, ``(up + 1) * gate * sigmoid(alpha * gate)``."""
    gate_up = torch.addmm(weights["gate_up_proj_bias"], rows, weights["gate_up_proj"])
    gate = gate_up[..., ::2].clamp(max=limit)
    up = gate_up[..., 1::2].clamp(min=-limit, max=limit)
    gated = (up + 1) * gate * torch.sigmoid(alpha * gate)
    return torch.addmm(weights["down_proj_bias"], gated, weights["down_proj"])
