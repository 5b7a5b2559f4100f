"""The gated MLP of one expert: ``down(silu(gate(x)) * up(x))``, forward and backward by hand.

By hand, because autograd would keep the weights of a replica's slot, which may hold another expert
by the time of backward, and would put the weight gradients of stacked experts together by copying.

Shapes: x ``[T, H]``, gate_up ``[2I, H]`` (gate rows first), down ``[H, I]``.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
Product = Callable[[Tensor, Tensor, Tensor], None]


def forward(x: Tensor, weights: Weights, out: Tensor) -> Tensor:
    """Writes the output to ``out [T, H]``; returns the pre-activation ``[T, 2I]`` for backward."""
    gate_up = F.linear(x, weights["gate_up"])
    gate, up = gate_up.chunk(2, dim=-1)
    torch.mm(F.silu(gate).mul_(up), weights["down"].t(), out=out)
    return gate_up


def backward(
    gradient: Tensor,
    x: Tensor,
    gate_up: Tensor,
    weights: Weights,
    weight_gradients: Weights,
    product: Product,
    out: Tensor,
) -> None:
    """Writes x's gradient to ``out``, and by ``product``, one of those below, the weights'."""
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.silu(gate)
    hidden = gradient @ weights["down"]
    gate_up_gradient = torch.empty_like(gate_up)
    gate_gradient, up_gradient = gate_up_gradient.chunk(2, dim=-1)
    torch.mul(hidden, activated, out=up_gradient)
    product(weight_gradients["down"], gradient, activated.mul_(up))
    torch.ops.aten.silu_backward.grad_input(hidden.mul_(up), gate, grad_input=gate_gradient)
    product(weight_gradients["gate_up"], gate_up_gradient, x)
    torch.mm(gate_up_gradient, weights["gate_up"], out=out)


def set_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total = left.T @ right."""
    torch.mm(left.t(), right, out=total)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.T @ right; ``total`` may be wider than the factors."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)
