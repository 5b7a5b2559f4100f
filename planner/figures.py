"""What ``foremoe plan`` says of a policy's plans."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.certificate import certificate
from foremoe.planner.cost import LayerSeconds, home_seconds, layer_seconds, new_replicas
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem


def figures(plans: list[Plan], ranks_per_node: int) -> dict[str, Any]:
    """Imbalance, distance to the bounds, replicas and copies of a stage's plans."""
    tokens = np.stack([plan.rank_tokens() for plan in plans])  # [M, L, P]
    certificates = [certificate(plan, ranks_per_node) for plan in plans]
    gap = np.stack([one.gap for one in certificates])
    even = tokens.sum(axis=2).clip(min=1) / tokens.shape[2]
    bounds = {
        name: float(np.mean([getattr(one, name) for one in certificates] / even))
        for name in ("topology", "fixed_homes")
    }
    placed = np.stack([plan.replica_expert for plan in plans])
    replicas = (placed >= 0).sum(axis=(2, 3))
    copies = copied(placed)
    return {
        "imbalance_after": statistics(imbalance(tokens)),
        "bound_gap": {"mean": float(gap.mean()), "max": float(gap.max())},
        "bounds": bounds,
        "replicas_per_layer": {"mean": float(replicas.mean()), "max": int(replicas.max())},
        "copies_per_layer": {"mean": float(copies.mean()), "max": int(copies.max())},
    }


def estimates(plans: list[Plan], problem: StageProblem) -> dict[str, Any]:
    """Seconds of the stage under the problem's cost model, if it has one."""
    cost, width = problem.cost, problem.topology.ranks_per_node
    if cost is None:
        return {"estimated_seconds_before": None, "estimated_seconds_after": None}
    _, layers, ranks, experts = problem.load.shape
    contiguous = contiguous_homes(layers, experts, ranks)
    before = [home_seconds(cost, load, contiguous, width) for load in problem.load]
    held = [None, *plans[:-1]]
    after = [layer_seconds(cost, plan, width, last) for plan, last in zip(plans, held, strict=True)]
    return {
        f"estimated_seconds_{name}": {
            part: float(sum(getattr(one, part).sum() for one in seconds))
            for part in (*LayerSeconds._fields, "total")
        }
        for name, seconds in (("before", before), ("after", after))
    }


def timed_plans(problem: StageProblem, policy: str) -> tuple[list[Plan], NDArray[np.float64]]:
    """A policy's plans, and the seconds that each took: float64 ``[M]``."""
    plans, ends = [], [time.perf_counter()]
    for plan in POLICIES[policy](problem):
        plans.append(plan)
        ends.append(time.perf_counter())
    return plans, np.diff(ends)


def copied(placed: NDArray[np.int32]) -> NDArray[np.int64]:
    """Replicas not on their rank in the micro-step before: ``[M, L, P, R]`` -> int64 ``[M, L]``."""
    before = np.concatenate([np.full_like(placed[:1], -1), placed[:-1]])
    copies: NDArray[np.int64] = new_replicas(placed, before).sum(axis=(2, 3))
    return copies


def statistics(samples: NDArray[np.float64]) -> dict[str, float]:
    """Mean, p99 and max."""
    return {
        "mean": float(samples.mean()),
        "p99": float(np.quantile(samples, 0.99)),
        "max": float(samples.max()),
    }
