"""One micro-step planned alone: replicas between nodes, then inside nodes, then the split.

Each level is a module of its own with its formulation: ``between_nodes``, ``inside_nodes`` (on one
node ``replicas``) and ``split``. Here they are put in order. On several nodes the threshold is the
goal, or without one the certificate: the best there could be. A layer whose levels do not reach it
is planned over all ranks alike, and then once more by level at the threshold that this found.

A copy across nodes has to keep as many pairs in their node as the geometric mean of two averages:
the pairs of a rank, and the pairs that a node has for an expert. With fewer, copies that pay would
not be made; with more, copies cross nodes that evening out the ranks does not need.
"""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.between_nodes import between_nodes
from foremoe.planner.bound import lower_bound
from foremoe.planner.goal import goal_tokens
from foremoe.planner.inside_nodes import inside_nodes
from foremoe.planner.plan import Plan, placed_tokens
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.replicas import choose_replicas
from foremoe.planner.split import split_by_source


def plan_micro_step(problem: StageProblem, load: NDArray[np.int64], target: float | None) -> Plan:
    """Plan one micro-step's ``load [L, P, E]`` of a stage, to ``target``."""
    ranks, slots = problem.topology.ranks, problem.spare_slots
    origin = problem.topology.by_node(load)
    expert_tokens = origin.sum(axis=1)
    bound = lower_bound(expert_tokens, problem.home, ranks, slots)
    goal = goal_tokens(expert_tokens, ranks, target)
    replica_expert, quota = choose(origin, problem.home, bound, goal, problem.topology, slots)
    return Plan(
        home=problem.home,
        load=load,
        replica_expert=replica_expert,
        replica_tokens=split_by_source(
            load, problem.home, replica_expert, quota, problem.topology.ranks_per_node
        ),
        bound=bound,
    )


def choose(
    origin: NDArray[np.int64],
    home: NDArray[np.int32],
    bound: NDArray[np.int64],
    goal: NDArray[np.int64],
    topology: Topology,
    spare_slots: int,
    eagerness: int = 1,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas int32 and quotas int64 ``[L, P, R]``.

    origin: int64 ``[L, N, E]``, pairs that originate in each node. home: int32 ``[L, E]``.
    bound: int64 ``[L]``, the certificate. goal: int64 ``[L]``, pairs on the busiest rank that
    suffice; 0 asks for the best balance. eagerness: as many times fewer pairs that then stay in
    their node pay for a copy across nodes; with 0 none do.
    """
    ranks = topology.ranks
    expert_tokens = origin.sum(axis=1)
    if topology.nodes == 1:
        return choose_replicas(expert_tokens, home, bound, goal, ranks, spare_slots)
    replica_expert, quota, reached = _by_level(
        origin, home, np.maximum(bound, goal), ranks, spare_slots, eagerness
    )
    if not reached.all():
        rest = ~reached
        origin, home, expert_tokens = origin[rest], home[rest], expert_tokens[rest]
        flat, flat_quota = choose_replicas(
            expert_tokens, home, bound[rest], goal[rest], ranks, spare_slots
        )
        threshold = placed_tokens(expert_tokens, home, flat, flat_quota).max(axis=1)
        expert, pairs, reached = _by_level(origin, home, threshold, ranks, spare_slots, eagerness)
        choice = reached[:, None, None]
        replica_expert[rest] = np.where(choice, expert, flat)
        quota[rest] = np.where(choice, pairs, flat_quota)
    return replica_expert, quota


def _by_level(
    origin: NDArray[np.int64],
    home: NDArray[np.int32],
    threshold: NDArray[np.int64],
    ranks: int,
    spare_slots: int,
    eagerness: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
    """Replicas and quotas ``[L, P, R]``, and which layers reach ``threshold [L]``."""
    expert_tokens = origin.sum(axis=1)
    total = expert_tokens.sum(axis=1)
    worth = total + 1
    if eagerness:
        worth = np.maximum(total // (isqrt(ranks * origin[0].size) * eagerness), 1)
    replica_expert, quota = between_nodes(origin, home, threshold, worth, ranks, spare_slots)
    reached = inside_nodes(origin, expert_tokens, home, threshold, worth, replica_expert, quota)
    return replica_expert, quota, reached
