"""The fastest of a micro-step's plans: the point on the frontier of balance and copies, by time.

A better balance saves compute, and costs replicas: copies that may not fit into the window before
the layer, a grouped GEMM's time for one more active expert, and dispatch. So each layer is planned
to each of a few targets, priced as far as it is known before the split
(``foremoe.planner.pricing``), and the first of the fastest is split and priced in full. A layer
that replicas do not speed up stays without.

On one node a layer is done with the first target whose copies are hidden and whose grouped GEMM
takes at most 2% longer than that of even ranks with one replica each: there is little to gain.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.bound import lower_bound
from foremoe.planner.cost import CostModel
from foremoe.planner.goal import goal_tokens
from foremoe.planner.micro_step import choose
from foremoe.planner.plan import Plan
from foremoe.planner.pricing import layer_picoseconds, placed_picoseconds
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.split import split_by_source

# (target, whether pairs that then stay in their node pay for copies), on one node and on several
ONE_NODE = ((None, True), (1.02, True), (1.1, True))
NEAR_IDEAL = 50  # within a 50th
NODES = ((1.02, True), (None, False), (1.05, False), (1.2, False))


def fastest_plan(problem: StageProblem, load: NDArray[np.int64], cost: CostModel) -> Plan:
    """Plan one micro-step's ``load [L, P, E]`` of a stage by its estimated time."""
    topology, home, slots = problem.topology, problem.home, problem.spare_slots
    origin = topology.by_node(load)
    bound = lower_bound(origin.sum(axis=1), home, topology.ranks, slots)
    replica_expert, quota = fastest_replicas(origin, home, bound, topology, slots, cost)
    tokens = split_by_source(load, home, replica_expert, quota, topology.ranks_per_node)
    plan = Plan(home, load, replica_expert, tokens, bound)
    undo_slower(plan, topology.ranks_per_node, cost)
    return plan


def undo_slower(plan: Plan, ranks_per_node: int, cost: CostModel) -> None:
    """Compute at home the layers that replicas, all of them copied, do not speed up."""
    slower = time_saved(plan, plan.replica_expert >= 0, ranks_per_node, cost) <= 0
    plan.replica_expert[slower], plan.replica_tokens[slower] = -1, 0


def fastest_replicas(
    origin: NDArray[np.int64],
    home: NDArray[np.int32],
    bound: NDArray[np.int64],
    topology: Topology,
    spare_slots: int,
    cost: CostModel,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas int32 and quotas int64 ``[L, P, R]``, as far as time is known before the split.

    origin: int64 ``[L, N, E]``, pairs that originate in each node. home: int32 ``[L, E]``.
    bound: int64 ``[L]``, the certificate.
    """
    ranks, prices = topology.ranks, cost.prices
    expert_tokens = origin.sum(axis=1)
    replica_expert = np.full((len(home), ranks, spare_slots), -1, np.int32)
    quota = np.zeros((len(home), ranks, spare_slots), np.int64)
    time = np.full(len(home), np.iinfo(np.int64).max)
    rest = np.arange(len(home))
    for target, keep_near in ONE_NODE if topology.nodes == 1 else NODES:
        goal = goal_tokens(expert_tokens[rest], ranks, target)
        other_expert, other_quota = choose(
            origin[rest], home[rest], bound[rest], goal, topology, spare_slots, keep_near
        )
        parts = placed_picoseconds(origin[rest], home[rest], other_expert, other_quota, prices)
        other_time = parts.sum(axis=1)
        faster = other_time < time[rest]
        replica_expert[rest[faster]], quota[rest[faster]] = (
            other_expert[faster],
            other_quota[faster],
        )
        time[rest[faster]] = other_time[faster]
        if topology.nodes == 1:
            rest = rest[~_near_ideal(parts, expert_tokens[rest], ranks, cost)]
            if not rest.size:
                break
    return replica_expert, quota


def _near_ideal(
    parts: NDArray[np.int64], expert_tokens: NDArray[np.int64], ranks: int, cost: CostModel
) -> NDArray[np.bool_]:
    """Whether another target could gain but little, of ``parts [L, 3]``: ``[L]``."""
    experts = expert_tokens.shape[1] // ranks + 1
    ideal = cost.launch + experts * cost.intercept + expert_tokens.sum(axis=1) // ranks * cost.pair
    near: NDArray[np.bool_] = (parts[:, 0] - ideal <= ideal // NEAR_IDEAL) & (parts[:, 2] == 0)
    return near


def time_saved(
    plan: Plan, copied: NDArray[np.bool_], ranks_per_node: int, cost: CostModel
) -> NDArray[np.int64]:
    """Picoseconds that each layer's replicas save, below 0 if they cost time: int64 ``[L]``.

    copied: bool ``[L, P, R]``, which replicas are not on their rank yet.
    """
    parts = layer_picoseconds(
        plan.load,
        plan.home,
        plan.replica_expert,
        plan.replica_tokens,
        copied,
        ranks_per_node,
        cost.prices,
    ).sum(axis=2)
    saved: NDArray[np.int64] = parts[:, 0] - parts[:, 1]
    return saved
