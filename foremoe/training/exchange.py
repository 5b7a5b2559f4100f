"""All-to-all of rows with uneven splits, differentiable."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Around = Callable[[], AbstractContextManager[None]]


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        send: list[int],
        receive: list[int],
        group: dist.ProcessGroup,
        around_backward: Around,
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.group, ctx.around = send, receive, group, around_backward
        return _exchange(rows, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        with ctx.around():
            received = _exchange(gradients[0], ctx.receive, ctx.send, ctx.group)
        return received, None, None, None, None


def _exchange(
    rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup
) -> Tensor:
    received = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), receive, send, group=group)
    return received


def exchange_rows(
    rows: Tensor,
    send: Sequence[int],
    receive: Sequence[int],
    group: dist.ProcessGroup,
    around_backward: Around = nullcontext,
) -> Tensor:
    """Send ``send[p]`` consecutive rows to each rank p, receive ``receive[p]`` from each.

    rows: ``[sum(send), ...]`` -> ``[sum(receive), ...]``. The gradient travels the same way back,
    inside of ``around_backward()``.
    """
    result: Tensor = _AllToAll.apply(  # type: ignore[no-untyped-call]
        rows, list(send), list(receive), group, around_backward
    )
    return result


def exchange_counts(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Row p of the result is what rank p holds for this rank: int64 ``[P, ...]`` -> same shape."""
    received = torch.empty_like(counts)
    dist.all_to_all_single(received, counts, group=group)
    return received
