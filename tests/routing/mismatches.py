"""Routing of a made-up model, to compare with itself."""

import torch
from torch import Tensor

from foremoe.routing.mismatch import RoutingMismatch

LAYERS, EXPERTS, TOP_K, TOKENS = (2, 3, 7), 16, 2, 200


def live_routing(seed: int = 0, skew: float = 1.0) -> Tensor:
    """int64 ``[TOKENS, L, TOP_K]``; some experts are more popular than others."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(TOKENS, len(LAYERS), EXPERTS, generator=generator)
    return (logits + skew * torch.linspace(0, 2, EXPERTS)).topk(TOP_K).indices


def compare(live: Tensor, given: Tensor) -> RoutingMismatch:
    mismatch = RoutingMismatch(LAYERS, EXPERTS)
    for position, layer in enumerate(LAYERS):
        mismatch.compare(layer, live[:, position], given)
    return mismatch
