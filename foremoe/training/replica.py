"""Compute of a replica: an autograd function that never keeps the slot's weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from foremoe.training import gated_mlp
from foremoe.transfer.replica import Replica

Acquire = Callable[[], Mapping[int, Replica]]
Function = Callable[..., Tensor]


class _ReplicaMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, slot: int, acquire: Acquire) -> Tensor:
        replica = acquire()[slot]
        output = torch.empty_like(rows)
        pre_activation = gated_mlp.forward(rows, replica.weights, output)
        ctx.save_for_backward(rows, pre_activation)
        ctx.slot, ctx.acquire, ctx.content = slot, acquire, replica.content
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows, pre_activation = ctx.saved_tensors
        replica: Replica = ctx.acquire()[ctx.slot]
        replica.check_held(ctx.content)
        assert replica.gradients is not None, "a forward-only slot cannot run backward"
        rows_gradient = torch.empty_like(rows)
        gated_mlp.backward(
            gradients[0],
            rows,
            pre_activation,
            replica.weights,
            replica.gradients,
            gated_mlp.add_product,
            rows_gradient,
        )
        return rows_gradient, None, None


def run_replica(rows: Tensor, slot: int, acquire: Acquire) -> Tensor:
    """Output of the replica in ``slot`` for ``rows [T, H]``.

    acquire: waits for the layer's replicas, by slot; backward asks again, as they may have been
    fetched again. Backward adds the weight gradients to the replica's gradient slab and raises when
    its slot does not hold what forward used.
    """
    output: Tensor = _ReplicaMlp.apply(rows, slot, acquire)  # type: ignore[no-untyped-call]
    return output


def differentiate_replica(
    function: Function, slot: int, acquire: Acquire, *inputs: Tensor
) -> Tensor:
    """``function(weights, *inputs)`` of the replica in ``slot``; as ``run_replica`` otherwise.

    Backward runs the function again.
    """
    output: Tensor = _Differentiated.apply(function, slot, acquire, *inputs)  # type: ignore[no-untyped-call]
    return output


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Function, slot: int, acquire: Acquire, *inputs: Tensor
    ) -> Tensor:
        replica = acquire()[slot]
        ctx.save_for_backward(*inputs)
        ctx.function, ctx.slot, ctx.acquire, ctx.content = function, slot, acquire, replica.content
        return function(replica.weights, *inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        replica: Replica = ctx.acquire()[ctx.slot]
        replica.check_held(ctx.content)
        assert replica.gradients is not None, "a forward-only slot cannot run backward"
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        # data, not detach(): all slots are views of one pool, and a copy into another slot would
        # count as a change of these weights.
        weights = {name: w.data.requires_grad_() for name, w in replica.weights.items()}
        with torch.enable_grad():
            output = ctx.function(weights, *inputs)
        found = torch.autograd.grad(output, [*inputs, *weights.values()], gradients)
        for name, gradient in zip(weights, found[len(inputs) :], strict=True):
            replica.gradients[name].add_(gradient)
        return None, None, None, *found[: len(inputs)]
