"""The fastest of a micro-step's plans: the point on the frontier of balance and copies, by time.

A better balance saves compute, and costs replicas: copies that may not fit into the window before
the layer, a grouped GEMM's time for one more active expert, and dispatch. So each layer is planned
to each of a few targets and priced (``foremoe.planner.pricing``); the first of the fastest is
taken. A layer that replicas do not speed up stays without.

On one node a layer is done with the first target whose copies are hidden and whose grouped GEMM
takes at most 2% longer than that of even ranks with one replica each: there is little to gain. Then
ranks, if they are few, trade pairs to keep more of their own (``foremoe.planner.own_pairs``). On
several nodes the fastest is given an even dispatch (``foremoe.planner.even_dispatch``). Each is
taken if it is faster still.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.bound import lower_bound
from foremoe.planner.cost import CostModel
from foremoe.planner.even_dispatch import even_dispatch
from foremoe.planner.goal import goal_tokens
from foremoe.planner.micro_step import choose
from foremoe.planner.own_pairs import keep_own_pairs
from foremoe.planner.plan import Plan
from foremoe.planner.pricing import layer_picoseconds, node_picoseconds
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.split import split_by_source

# (target, how eagerly pairs are kept on their rank), on one node; in their node, on several
ONE_NODE = ((None, 1), (1.02, 0), (1.1, 0))
OWN_RANKS = 16  # of a node; of more, a rank's own pairs are too small a part
NEAR_IDEAL = 50  # within a 50th
NODES = ((1.02, 1), (None, 0), (1.05, 0), (1.2, 0), (1.2, 4), (1.05, 2))


def fastest_plan(problem: StageProblem, load: NDArray[np.int64], cost: CostModel) -> Plan:
    """Plan one micro-step's ``load [L, P, E]`` of a stage by its estimated time."""
    topology, home, slots = problem.topology, problem.home, problem.spare_slots
    bound = lower_bound(load.sum(axis=1), home, topology.ranks, slots)
    replica_expert, quota, time = fastest_replicas(load, home, bound, topology, slots, cost)
    none = np.full_like(replica_expert, -1), np.zeros_like(quota)
    slower = time >= _picoseconds(load, home, *none, topology, cost).sum(axis=1)
    replica_expert[slower], quota[slower] = -1, 0
    tokens = split_by_source(load, home, replica_expert, quota, topology.ranks_per_node)
    return Plan(home, load, replica_expert, tokens, bound)


def undo_slower(plan: Plan, ranks_per_node: int, cost: CostModel) -> None:
    """Compute at home the layers that replicas, all of them copied, do not speed up."""
    slower = time_saved(plan, plan.replica_expert >= 0, ranks_per_node, cost) <= 0
    plan.replica_expert[slower], plan.replica_tokens[slower] = -1, 0


def fastest_replicas(
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    bound: NDArray[np.int64],
    topology: Topology,
    spare_slots: int,
    cost: CostModel,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Replicas int32 and quotas int64 ``[L, P, R]``; picoseconds with all of them copied ``[L]``.

    load: int64 ``[L, P, E]``. home: int32 ``[L, E]``. bound: int64 ``[L]``, the certificate.
    """
    ranks, several = topology.ranks, topology.nodes > 1
    own = not several and ranks <= OWN_RANKS
    near = Topology(ranks, 1) if own else topology  # pairs are near on their rank, or in their node
    origin = near.by_node(load)
    expert_tokens = origin.sum(axis=1)
    replica_expert = np.full((len(home), ranks, spare_slots), -1, np.int32)
    quota = np.zeros((len(home), ranks, spare_slots), np.int64)
    time = np.full(len(home), np.iinfo(np.int64).max)

    def offer(
        layers: NDArray[np.int64], expert: NDArray[np.int32], pairs: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Take what is faster than what there is; compute, dispatch and exposed copies."""
        parts = _picoseconds(load[layers], home[layers], expert, pairs, topology, cost)
        faster = parts.sum(axis=1) < time[layers]
        chosen = layers[faster]
        time[chosen] = parts.sum(axis=1)[faster]
        replica_expert[chosen], quota[chosen] = expert[faster], pairs[faster]
        return parts

    rest = np.arange(len(home))
    for target, eagerness in NODES if several else ONE_NODE:
        goal = goal_tokens(expert_tokens[rest], ranks, target)
        parts = offer(
            rest,
            *choose(origin[rest], home[rest], bound[rest], goal, near, spare_slots, eagerness),
        )
        if not several:
            rest = rest[~_near_ideal(parts, expert_tokens[rest], ranks, cost)]
            if not rest.size:
                break
    if several or own:
        trade = even_dispatch if several else keep_own_pairs
        offer(np.arange(len(home)), *trade(origin, home, replica_expert, quota))
    return replica_expert, quota, time


def _picoseconds(
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
    topology: Topology,
    cost: CostModel,
) -> NDArray[np.int64]:
    """Compute, dispatch and exposed copies with the split, all replicas copied: ``[L, 3]``."""
    if topology.nodes == 1:
        return node_picoseconds(load, home, replica_expert, quota, cost.prices)
    width = topology.ranks_per_node
    tokens = split_by_source(load, home, replica_expert, quota, width)
    copied = replica_expert >= 0
    return layer_picoseconds(load, home, replica_expert, tokens, copied, width, cost.prices)[:, 1]


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
