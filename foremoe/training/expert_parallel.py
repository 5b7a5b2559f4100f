"""The expert computation of one MoE layer over an EP group, with or without replicas.

    pairs -> destinations (split table) -> all-to-all -> experts and replicas -> all-to-all -> sum

Every rank of the group calls it for the same layer at the same time; their token counts may differ,
also be zero.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.timeline.recorder import OTHER, Activity, SpanRecorder
from foremoe.training.exchange import Around, exchange_counts, exchange_rows
from foremoe.training.expert_function import ExpertFunction, GatedMlp
from foremoe.training.split_table import Slots, SplitTable
from foremoe.transfer.replica import Replica

_GATED_MLP = GatedMlp()
_NO_SPANS = SpanRecorder()


@dataclass(frozen=True, slots=True)
class LayerWork:
    """What one layer does in the current micro-step on this rank.

    acquire: waits until the spare slots hold what the plan promised; slot index -> replica.
    computed: told how many pairs this rank received.
    forward_done, backward_done: called when the layer's weights are no longer needed there.
    layer, spans: where its parts are recorded.
    """

    slots: Slots
    table: SplitTable
    acquire: Callable[[], Mapping[int, Replica]]
    computed: Callable[[int], None]
    forward_done: Callable[[], None]
    backward_done: Callable[[], None]
    layer: int = -1
    spans: SpanRecorder = _NO_SPANS

    def during(
        self, track: str, name: str, then: Activity | None = None
    ) -> AbstractContextManager[None]:
        """Record what the compute stream does inside, and what it does then."""
        return self.spans.during(Activity(track, name, self.layer), then)

    @classmethod
    def at_home(cls, slots: Slots, table: SplitTable) -> "LayerWork":
        """Every expert computes at its home, and nobody is told."""
        return cls(slots, table, dict, lambda _: None, lambda: None, lambda: None)


def run_experts(
    hidden: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    home: Mapping[str, Tensor],
    work: LayerWork,
    group: dist.ProcessGroup,
    expert: ExpertFunction = _GATED_MLP,
) -> Tensor:
    """Weighted sum of the chosen experts' outputs for this rank's tokens.

    hidden: ``[T, H]``. expert_ids: int64 ``[T, K]`` logical ids, -1 for a pair to leave out.
    weights: ``[T, K]``. home: this rank's own experts, each tensor ``[E / P, ...]``.
    expert: what one of them computes. Returns ``[T, H]``.
    """
    hidden = when_backward_ends(hidden, work.backward_done)
    pair, code = work.table.destinations(expert_ids.reshape(-1))
    # Backward meets the parts the other way round, and computes between the two exchanges.
    after_dispatch = partial(work.during, "dispatch", "backward", OTHER)
    backward = Activity("compute", "backward", work.layer)
    after_combine = partial(work.during, "dispatch", "backward", backward)
    with work.during("dispatch", "forward"):
        token = pair // expert_ids.shape[-1]
        received = dispatch(hidden, token, code, work.slots, group, after_dispatch)
    work.computed(len(received.rows))
    with work.during("compute", "forward"):
        output = _compute(received, home, work, expert)
    with work.during("dispatch", "combine"):
        output = exchange_rows(output, received.receive, received.send, group, after_combine)
    summed = weighted_sum(output, pair, weights)
    work.forward_done()
    return summed


def weighted_sum(output: Tensor, pair: Tensor, weights: Tensor) -> Tensor:
    """Outputs ``[N, H]`` of the pairs ``pair [N]`` times their ``weights [T, K]``, by token."""
    pair_output = output.new_zeros(weights.numel(), output.shape[-1])
    pair_output = pair_output.index_copy(0, pair, output)
    pair_output = pair_output.view(*weights.shape, output.shape[-1])
    # Routers may weigh in another type than the model's: the wider of both.
    wide = torch.promote_types(weights.dtype, output.dtype)
    return torch.einsum("tk,tkh->th", weights.to(wide), pair_output.to(wide)).to(output.dtype)


def when_backward_ends(hidden: Tensor, done: Callable[[], None]) -> Tensor:
    """A layer's input ``[..., H]``, to be used in its place: its backward calls ``done``."""
    if torch.is_grad_enabled() and not hidden.requires_grad:
        # Backward must reach the replicas, whose weights autograd does not know.
        hidden = hidden.detach().requires_grad_()
    marked: Tensor = _BackwardEnd.apply(hidden, done)  # type: ignore[no-untyped-call]
    return marked


@dataclass(frozen=True, slots=True)
class Received:
    """Rows this rank computes, as they arrived, and how to send results back.

    rows: ``[N, H]``, by source rank, then slot. per_slot: int64 ``[P, slots]`` rows of each.
    """

    rows: Tensor
    per_slot: Tensor
    send: list[int]
    receive: list[int]


def dispatch(
    hidden: Tensor,
    token: Tensor,
    code: Tensor,
    slots: Slots,
    group: dist.ProcessGroup,
    around_backward: Around,
) -> Received:
    """Send ``hidden[token]`` to the slots ``code``, sorted ascending (both ``[pairs]``)."""
    counts = torch.bincount(code, minlength=slots.ranks * slots.per_rank)
    counts = counts.view(slots.ranks, slots.per_rank)
    per_slot = exchange_counts(counts, group)
    send: list[int] = counts.sum(dim=1).tolist()
    receive: list[int] = per_slot.sum(dim=1).tolist()
    rows = exchange_rows(hidden.index_select(0, token), send, receive, group, around_backward)
    return Received(rows, per_slot, send, receive)


def _compute(
    received: Received, home: Mapping[str, Tensor], work: LayerWork, expert: ExpertFunction
) -> Tensor:
    """Outputs ``[N, H]`` in the order of ``received.rows``."""
    sizes: list[list[int]] = received.per_slot.tolist()
    by_slot = list(zip(*sizes, strict=True))
    counts = [sum(of_slot) for of_slot in by_slot]
    owned = work.slots.experts_per_rank
    at_home, replicas = counts[:owned], counts[owned:]
    rows, *foreign = _regrouped(received.rows, sizes).split([sum(at_home), *replicas])
    outputs = [expert.at_home(rows, at_home, home)]
    work.acquire()
    for slot, rows in enumerate(foreign):
        if len(rows):
            outputs.append(expert.as_replica(rows, slot, work.acquire))
    return _regrouped(torch.cat(outputs), by_slot)


def _regrouped(rows: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Blocks of ``sizes[a][b]`` consecutive rows, in the order (a, b), put in the order (b, a)."""
    blocks = rows.split([size for of_a in sizes for size in of_a])
    width = len(sizes[0])
    return torch.cat([blocks[i] for b in range(width) for i in range(b, len(blocks), width)])


class _BackwardEnd(torch.autograd.Function):
    """Identity at the layer's input: its backward runs when the layer's own backward has ended."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, done: Callable[[], None]) -> Tensor:
        ctx.done = done
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.done()
        return gradients[0], None
