"""What one RL step showed: the balanced run beside the unbalanced one."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from foremoe.demo.trainer import RunResult
from foremoe.planner.imbalance import imbalance
from foremoe.vocabulary import Stage


def compare(balanced: RunResult, unbalanced: RunResult) -> dict[str, Any]:
    """One step's figures, the same on every rank; collective."""
    return {
        "stages": {str(stage): _stage(stage, balanced, unbalanced) for stage in Stage},
        "loss": balanced.losses,
        "loss_difference": _largest_difference(
            [torch.tensor(balanced.losses, dtype=torch.float64)],
            [torch.tensor(unbalanced.losses, dtype=torch.float64)],
        ),
        "old_log_prob_difference": _largest_difference(
            balanced.old_log_probs, unbalanced.old_log_probs
        ),
        "gradient_difference": max(
            map(_largest_difference, balanced.gradients, unbalanced.gradients)
        ),
        "gradient_scale": max(
            _largest([tensor.abs() for tensor in gradients]) for gradients in balanced.gradients
        ),
    }


def _stage(stage: Stage, balanced: RunResult, unbalanced: RunResult) -> dict[str, Any]:
    after, before = balanced.stages[stage], unbalanced.stages[stage]
    tokens_after = _group_tokens([record.computed_tokens for record in after.records])
    tokens_before = _group_tokens([record.computed_tokens for record in before.records])
    records = after.records
    exposed = sum(float(r.exposed_seconds.sum()) + r.exposed_gradient_seconds for r in records)
    return {
        "imbalance_before": float(imbalance(tokens_before).mean()),
        "imbalance_after": float(imbalance(tokens_after).mean()),
        "busiest_tokens_before": int(tokens_before.max(axis=-1).sum()),
        "busiest_tokens_after": int(tokens_after.max(axis=-1).sum()),
        "seconds_unbalanced": before.seconds,
        "seconds_balanced": after.seconds,
        "exposed_seconds": _largest([torch.tensor(exposed)]),
        "host_bytes": _sum(sum(record.host_bytes for record in records)),
        "peer_bytes": _sum(sum(record.peer_bytes for record in records)),
        "gradient_bytes": _sum(sum(record.gradient_bytes for record in records)),
        "micro_steps": len(records),
        "degraded": {str(r.micro_step): r.degraded_reason for r in records if r.degraded_reason},
    }


def _group_tokens(own: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Pairs each rank computed: ``[M, L, P]``."""
    mine = torch.from_numpy(np.stack(own))
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    tokens: NDArray[np.int64] = torch.stack(gathered, dim=-1).numpy()
    return tokens


def _largest_difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return _largest([(a - b).abs() for a, b in zip(left, right, strict=True)])


def _largest(tensors: list[torch.Tensor]) -> float:
    """Largest element on any rank; NaN counts as infinity, so that it cannot hide."""
    values = [tensor.nan_to_num(nan=math.inf) for tensor in tensors if tensor.numel()]
    largest = max((float(value.max()) for value in values), default=0.0)
    value = torch.tensor([largest], dtype=torch.float64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value.item())


def _sum(own: int) -> int:
    total = torch.tensor([own])
    dist.all_reduce(total)
    return int(total.item())
