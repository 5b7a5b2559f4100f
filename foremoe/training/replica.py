"""Compute of a replica: an autograd function that never keeps the slot's weights."""

from typing import Any

import torch
from torch import Tensor

from foremoe.training import gated_mlp
from foremoe.transfer.replica import Replica


class _ReplicaMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, replica: Replica) -> Tensor:
        replica.check_held()
        output, pre_activation = gated_mlp.forward(rows, replica.weights)
        ctx.save_for_backward(rows, pre_activation)
        ctx.replica = replica
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows, pre_activation = ctx.saved_tensors
        replica: Replica = ctx.replica
        replica.check_held()
        assert replica.gradients is not None, "a forward-only slot cannot run backward"
        rows_gradient = gated_mlp.backward(
            gradients[0], rows, pre_activation, replica.weights, replica.gradients
        )
        return rows_gradient, None


def run_replica(rows: Tensor, replica: Replica) -> Tensor:
    """Output of the replica's expert for ``rows [T, H]``.

    Backward adds the weight gradients to the replica's gradient slab and raises TransferError when
    the slot no longer holds the expert that forward used.
    """
    output: Tensor = _ReplicaMlp.apply(rows, replica)  # type: ignore[no-untyped-call]
    return output
