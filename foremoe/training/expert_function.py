"""What an expert computes, at home (under autograd) and as a replica (whose weights will go).

``GatedMlp`` is the usual one, written out by hand. ``Differentiated`` takes any function of rows
and weights; as a replica it runs the function again in backward.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foremoe.training import gated_mlp
from foremoe.training.replica import Acquire, Function, differentiate_replica, run_replica

Weights = Mapping[str, Tensor]


class ExpertFunction(Protocol):
    """Rows ``[N, H]`` -> ``[N, H]``, by the weights of experts.

    at_home: consecutive ``counts`` rows go to each of the own experts, whose weights are stacked.
    The result depends on ``rows`` also where there are none, so that backward reaches every rank.
    """

    def at_home(self, rows: Tensor, counts: Sequence[int], home: Weights) -> Tensor: ...

    def as_replica(self, rows: Tensor, slot: int, acquire: Acquire) -> Tensor: ...


class GatedMlp:
    """``down(silu(gate(x)) * up(x))``, see ``foremoe.training.gated_mlp``."""

    def at_home(self, rows: Tensor, counts: Sequence[int], home: Weights) -> Tensor:
        output: Tensor = _HomeMlp.apply(rows, counts, home["gate_up"], home["down"])  # type: ignore[no-untyped-call]
        return output

    def as_replica(self, rows: Tensor, slot: int, acquire: Acquire) -> Tensor:
        return run_replica(rows, slot, acquire)


class Differentiated:
    """``function(weights, rows)``, differentiable in both."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def at_home(self, rows: Tensor, counts: Sequence[int], home: Weights) -> Tensor:
        outputs = [
            self._function(weights, part)
            for weights, part in zip(_unstacked(home), rows.split(counts), strict=True)
            if len(part)
        ]
        return torch.cat([rows[:0], *outputs])

    def as_replica(self, rows: Tensor, slot: int, acquire: Acquire) -> Tensor:
        return differentiate_replica(self._function, slot, acquire, rows)


class _HomeMlp(torch.autograd.Function):
    """Writes each expert's weight gradient straight to its place in the stacked gradient."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, counts: Sequence[int], gate_up: Tensor, down: Tensor
    ) -> Tensor:
        output = torch.empty_like(rows)
        experts = _unstacked({"gate_up": gate_up, "down": down})
        parts = zip(rows.split(counts), experts, output.split(counts), strict=True)
        pre_activations = [gated_mlp.forward(*part) for part in parts]
        ctx.save_for_backward(rows, gate_up, down, *pre_activations)
        ctx.counts = counts
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        rows, gate_up, down, *pre_activations = ctx.saved_tensors
        rows_gradient = torch.empty_like(rows)
        totals = {"gate_up": torch.empty_like(gate_up), "down": torch.empty_like(down)}
        for gradient, part, pre_activation, weights, total, out in zip(
            gradients[0].split(ctx.counts),
            rows.split(ctx.counts),
            pre_activations,
            _unstacked({"gate_up": gate_up, "down": down}),
            _unstacked(totals),
            rows_gradient.split(ctx.counts),
            strict=True,
        ):
            if len(part):
                gated_mlp.backward(
                    gradient, part, pre_activation, weights, total, gated_mlp.set_product, out
                )
            else:
                for untouched in total.values():
                    untouched.zero_()
        return rows_gradient, None, totals["gate_up"], totals["down"]


def _unstacked(stacked: Weights) -> list[dict[str, Tensor]]:
    """One dict per expert; unbind's backward is one stack, indexing's is many adds."""
    experts = zip(*(tensor.unbind(0) for tensor in stacked.values()), strict=True)
    return [dict(zip(stacked, tensors, strict=True)) for tensors in experts]
