"""What the planner's benchmark measures, and how a workload's plans are measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.planner_loads import Workload
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.over_time import resident
from foremoe.planner.plan import Plan
from foremoe.planner.policies import POLICIES, Policy
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.step_homes import step_homes
from foremoe.planner.validate import validate

KEEP = "keep"  # stay with what the micro-step before left, and look no further
PLANNED: dict[str, Policy] = {**POLICIES, KEEP: partial(resident, lookahead=0)}


@dataclass(frozen=True)
class Figure:
    """What one policy reached on one workload; means and maxima over (micro-step, layer)."""

    workload: str
    homes: str
    policy: str
    spare_slots: int
    target: float | None
    nodes: int
    imbalance_mean: float
    imbalance_p99: float
    imbalance_max: float
    bound_mean: float  # the least imbalance with these homes and spare slots
    bound_max: float
    replicas: float
    copies: float
    copies_across_nodes: float
    pairs: float
    pairs_across_nodes: float  # computed on another node than they originate on


def measure(
    workload: Workload,
    homes: str,
    policy: str,
    spare_slots: int,
    target: float | None = None,
    nodes: int = 1,
) -> Figure:
    """Plan, check every plan, and count."""
    problem = pose(workload, homes, spare_slots, target, nodes)
    plans = list(PLANNED[policy](problem))
    for plan, load in zip(plans, problem.load, strict=True):
        validate(plan, load, problem.topology, spare_slots)
    tokens = np.stack([plan.rank_tokens() for plan in plans])
    reached = imbalance(tokens)
    least = np.stack([plan.bound for plan in plans]) / np.maximum(tokens.mean(axis=2), 1)
    samples = len(plans) * problem.load.shape[1]
    copies, across = _copies(plans, problem.topology)
    return Figure(
        workload=workload.name,
        homes=homes,
        policy=policy,
        spare_slots=spare_slots,
        target=target,
        nodes=nodes,
        imbalance_mean=float(reached.mean()),
        imbalance_p99=float(np.quantile(reached, 0.99)),
        imbalance_max=float(reached.max()),
        bound_mean=float(least.mean()),
        bound_max=float(least.max()),
        replicas=sum(plan.replicas() for plan in plans) / samples,
        copies=copies / samples,
        copies_across_nodes=across / samples,
        pairs=float(tokens.sum()) / samples,
        pairs_across_nodes=_pairs_across(plans, problem.topology) / samples,
    )


def pose(
    workload: Workload, homes: str, spare_slots: int, target: float | None, nodes: int = 1
) -> StageProblem:
    """The whole workload as one mini-batch; homes are ``contiguous`` or ``step``."""
    micro_steps, layers, ranks, experts = workload.load.shape
    topology = Topology(ranks, ranks // nodes)
    home = contiguous_homes(layers, experts, ranks)
    if homes == "step":
        home = step_homes(workload.load.sum(axis=2), home, ranks, topology.ranks_per_node)
    return StageProblem(
        workload.load, home, np.zeros(micro_steps, np.int32), topology, spare_slots, target
    )


def only(figures: Iterable[Figure], **wanted: object) -> Figure:
    """The one figure with these values."""
    (found,) = (
        figure
        for figure in figures
        if all(getattr(figure, name) == value for name, value in wanted.items())
    )
    return found


def _copies(plans: list[Plan], topology: Topology) -> tuple[int, int]:
    """Replicas and homes that were not on their rank before, and those from another node."""
    copies = across = 0
    before = np.zeros((*plans[0].home.shape, topology.ranks), np.bool_)  # [L, E, P]
    node = np.arange(topology.ranks) // topology.ranks_per_node
    for index, plan in enumerate(plans):
        hosted = np.zeros_like(before)
        layer, rank, slot = np.nonzero(plan.replica_expert >= 0)
        hosted[layer, plan.replica_expert[layer, rank, slot], rank] = True
        np.put_along_axis(hosted, plan.home[:, :, None], True, axis=2)
        if index == 0:  # homes are where they are when the stage begins
            np.put_along_axis(before, plan.home[:, :, None], True, axis=2)
        new_layer, new_expert, new_rank = np.nonzero(hosted & ~before)
        owner = plan.home[new_layer, new_expert]
        copies += len(new_layer)
        across += int(np.count_nonzero(node[owner] != node[new_rank]))
        before = hosted
    return copies, across


def _pairs_across(plans: list[Plan], topology: Topology) -> int:
    node = np.arange(topology.ranks) // topology.ranks_per_node
    far = node[:, None] != node[None, :]  # [source, rank]
    crossing = 0
    for plan in plans:
        left = plan.load.copy()
        for layer, rank, slot in np.argwhere(plan.replica_expert >= 0):
            served = plan.replica_tokens[layer, :, rank, slot]
            crossing += int(served[far[:, rank]].sum())
            left[layer, :, plan.replica_expert[layer, rank, slot]] -= served
        home_far = node[None, :, None] != node[plan.home][:, None, :]  # [L, source, E]
        crossing += int(left[home_far].sum())
    return crossing
