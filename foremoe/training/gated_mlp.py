"""The gated MLP of one expert: ``down(silu(gate(x)) * up(x))``, forward and backward by hand.

Home experts run ``forward`` under autograd. Replicas run it without, and later ``backward``:
autograd would keep the slot's tensor itself, which may hold another expert by then.

Shapes: x ``[T, H]``, gate_up ``[2I, H]`` (gate rows first), down ``[H, I]``.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(x: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The output ``[T, H]`` and the pre-activation ``[T, 2I]`` that backward needs."""
    gate_up = F.linear(x, weights["gate_up"])
    gate, up = gate_up.chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, weights["down"]), gate_up


def backward(
    gradient: Tensor,
    x: Tensor,
    gate_up: Tensor,
    weights: Mapping[str, Tensor],
    weight_gradients: Mapping[str, Tensor],
) -> Tensor:
    """Adds to ``weight_gradients`` (shaped as the weights, any dtype); returns x's gradient."""
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.silu(gate)
    _add_product(weight_gradients["down"], gradient, activated * up)
    hidden_gradient = gradient @ weights["down"]
    gate_gradient = torch.ops.aten.silu_backward(hidden_gradient * up, gate)
    gate_up_gradient = torch.cat([gate_gradient, hidden_gradient * activated], dim=-1)
    _add_product(weight_gradients["gate_up"], gate_up_gradient, x)
    return gate_up_gradient @ weights["gate_up"]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.T @ right; ``total`` may be wider than the factors."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)
