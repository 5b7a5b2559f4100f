"""Routers of Transformers' models: their scores for any experts, and the hook that replays.

Routers differ in how a chosen expert's weight follows from the logits. Which way it is, is read off
the router's attributes, and checked against the router's own output in its first forward pass.
"""

import re
from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foremoe.errors import InvalidInputError
from foremoe.routing.replay import RoutingReplay

LAYER = re.compile(r"\blayers\.(\d+)\.")
_UNDERFLOW = 1e-30


class Scoring(Protocol):
    """How a router turns logits ``[T, E]`` into weights."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Over all experts: ``[T, E]``, rows sum to 1."""

    def weights(self, logits: Tensor, expert_ids: Tensor) -> Tensor:
        """Of given experts: ``[T, K]``."""


class Softmax:
    """Softmax over all experts, the chosen ones' values normalised or not (Qwen3-MoE, Mixtral)."""

    def __init__(self, normalise: bool) -> None:
        self._normalise = normalise

    def probabilities(self, logits: Tensor) -> Tensor:
        return F.softmax(logits, dim=-1, dtype=_wide(logits))

    def weights(self, logits: Tensor, expert_ids: Tensor) -> Tensor:
        values = self.probabilities(logits).gather(-1, expert_ids)
        if not self._normalise:
            return values
        total = values.sum(dim=-1, keepdim=True)
        # Replayed experts that the live router would never choose: all their values may be 0.
        safe = total > _UNDERFLOW
        small = F.softmax(logits.gather(-1, expert_ids), dim=-1, dtype=values.dtype)
        return torch.where(safe, values / torch.where(safe, total, 1.0), small)


class SoftmaxOfChosen:
    """Softmax over the chosen experts' logits alone (gpt-oss)."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return F.softmax(logits, dim=-1, dtype=_wide(logits))

    def weights(self, logits: Tensor, expert_ids: Tensor) -> Tensor:
        return F.softmax(logits.gather(-1, expert_ids), dim=-1)


class Sigmoid:
    """A sigmoid of each logit, scaled (DeepSeek-V3, GLM-4-MoE)."""

    def __init__(self, normalise: bool, factor: float) -> None:
        self._normalise = normalise
        self._factor = factor

    def probabilities(self, logits: Tensor) -> Tensor:
        scores = logits.to(_wide(logits)).sigmoid()
        return scores / scores.sum(dim=-1, keepdim=True)

    def weights(self, logits: Tensor, expert_ids: Tensor) -> Tensor:
        values = logits.sigmoid().gather(-1, expert_ids)
        if self._normalise:
            values = values / (values.sum(dim=-1, keepdim=True) + 1e-20)
        return values * self._factor


def scoring_of(router: nn.Module) -> Scoring:
    """The scoring that the router's attributes speak of."""
    normalise = bool(getattr(router, "norm_topk_prob", True))
    factor = getattr(router, "routed_scaling_factor", None)
    if factor is not None:
        return Sigmoid(normalise, float(factor))
    return SoftmaxOfChosen() if hasattr(router, "bias") else Softmax(normalise)


def routers_of(model: nn.Module) -> dict[int, nn.Module]:
    """The top-k routers by decoder layer, ascending; dense layers have none."""
    found = {}
    for name, module in model.named_modules():
        match = LAYER.search(name)
        if match and name.endswith((".gate", ".router")) and hasattr(module, "top_k"):
            found[int(match[1])] = module
    return dict(sorted(found.items()))


def selection_biases(model: nn.Module) -> dict[int, Tensor]:
    """The buffers that only decide which experts are chosen, for ``BiasBalancer``, by layer."""
    return {
        layer: router.get_buffer("e_score_correction_bias")
        for layer, router in routers_of(model).items()
        if hasattr(router, "e_score_correction_bias")
    }


def hook_routers(
    model: nn.Module, layers: Iterable[int]
) -> tuple[RoutingReplay, list[RemovableHandle]]:
    """Put a RoutingReplay behind the routers of the given decoder layers.

    Raises InvalidInputError for a layer without a router that is known.
    """
    routers, layers = routers_of(model), tuple(layers)
    missing = [layer for layer in layers if layer not in routers]
    if missing:
        raise InvalidInputError(f"foremoe: found no top-k router in layers {missing}")
    config: Any = model.config
    replay = RoutingReplay(layers, int(config.num_experts_per_tok))
    return replay, [
        routers[layer].register_forward_hook(_RouterHook(replay, layer, routers[layer]))
        for layer in layers
    ]


class _RouterHook:
    """Replaces the router's choice by the replay's; routers give (logits, weights, experts)."""

    def __init__(self, replay: RoutingReplay, layer: int, router: nn.Module) -> None:
        self._replay = replay
        self._layer = layer
        self._name = type(router).__name__
        self._scoring = scoring_of(router)
        self._checked = False

    def __call__(
        self, router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        del router, args
        logits, weights, chosen = output
        if not self._checked:
            self._check(logits, weights, chosen)

        def scores(expert_ids: Tensor) -> Tensor:
            return self._scoring.weights(logits, expert_ids).to(weights.dtype)

        used, used_weights = self._replay.route(self._layer, chosen, weights, scores)
        for observer in self._replay.observers:
            observer.observe(self._layer, logits, self._scoring.probabilities(logits), used)
        return logits, used_weights, used

    def _check(self, logits: Tensor, weights: Tensor, chosen: Tensor) -> None:
        with torch.no_grad():
            own = self._scoring.weights(logits, chosen).to(weights.dtype)
        if not torch.allclose(own, weights, rtol=1e-2 if weights.dtype.itemsize < 4 else 1e-4):
            raise InvalidInputError(
                f"foremoe: the router {self._name} of layer {self._layer} weighs experts in a way "
                f"that is not known (taken for {type(self._scoring).__name__}); it cannot replay"
            )
        self._checked = True


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
