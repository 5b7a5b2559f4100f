"""Homes that pay: as few moves of experts at the step boundary as save more time than they take.

``step_homes`` exchanges experts, those that even out the load most first, and stops where an
exchange gains too little. How little is a question of time: moving an expert's parameters and
optimizer state takes its link a while, once a step, and what is saved recurs with every micro-step.
So homes are made for a few values of the least gain, a sample of the step's micro-steps is planned
for each by estimated time, and every layer takes the homes for which moving and the step together
take least; between equals those with fewer moves. The moves of different layers are taken to wait
for each other, so a layer's are never underestimated.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.by_time import fastest_plan
from foremoe.planner.cost import CostModel
from foremoe.planner.pricing import layer_picoseconds
from foremoe.planner.problem import StageProblem
from foremoe.planner.step_homes import step_homes

LEAST_GAINS = (0.1, 0.01, 0.001)  # of mean squared deviation, the fewest moves first
SAMPLE = 8  # micro-steps


def homes_that_pay(problem: StageProblem, cost: CostModel) -> NDArray[np.int32]:
    """Homes int32 ``[L, E]`` for a step like ``problem``, starting from its homes."""
    topology = problem.topology
    expert_tokens = problem.load.sum(axis=2)
    best = problem.home.copy()
    best_time = _step_picoseconds(problem, cost)
    for least_gain in LEAST_GAINS:
        home = step_homes(
            expert_tokens, problem.home, topology.ranks, topology.ranks_per_node, least_gain
        )
        time = _step_picoseconds(dataclasses.replace(problem, home=home), cost)
        time += move_picoseconds(problem.home, home, topology.ranks_per_node, cost)
        faster = time < best_time
        best[faster], best_time[faster] = home[faster], time[faster]
    return best


def move_picoseconds(
    before: NDArray[np.int32], after: NDArray[np.int32], ranks_per_node: int, cost: CostModel
) -> NDArray[np.int64]:
    """Time to move experts from homes ``before`` to homes ``after``, ``[L, E]``: int64 ``[L]``.

    Of the busiest link; a rank sends and receives at the same time.
    """
    ranks = int(max(before.max(initial=0), after.max(initial=0))) + 1
    far = before // ranks_per_node != after // ranks_per_node
    price = np.where(far, cost.far_move, cost.near_move) * (before != after)
    rows = np.arange(len(before))[:, None]
    sent = np.zeros((len(before), ranks), np.int64)
    received = np.zeros_like(sent)
    np.add.at(sent, (rows, before), price)
    np.add.at(received, (rows, after), price)
    busiest: NDArray[np.int64] = np.maximum(sent, received).max(axis=1)
    return busiest


def _step_picoseconds(problem: StageProblem, cost: CostModel) -> NDArray[np.int64]:
    """Estimated time of every layer over all micro-steps, from a sample: int64 ``[L]``."""
    chosen = np.unique(np.linspace(0, problem.micro_steps - 1, SAMPLE).astype(np.int64))
    time = np.zeros(len(problem.home), np.int64)
    for micro_step in chosen:
        plan = fastest_plan(problem, problem.load[micro_step], cost)
        parts = layer_picoseconds(
            plan.load,
            plan.home,
            plan.replica_expert,
            plan.replica_tokens,
            plan.replica_expert >= 0,
            problem.topology.ranks_per_node,
            cost.prices,
        )
        time += parts[:, 1].sum(axis=1)
    return time * problem.micro_steps // len(chosen)
