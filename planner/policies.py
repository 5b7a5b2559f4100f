"""Policies: from a stage's loads to one plan after another, lazily, in the order of execution."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import product

import numpy as np

from foremoe.planner import baselines
from foremoe.planner.bound import lower_bound
from foremoe.planner.by_time import fastest_plan, undo_slower
from foremoe.planner.cost import CostModel
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.micro_step import plan_micro_step
from foremoe.planner.over_time import resident
from foremoe.planner.plan import Plan
from foremoe.planner.problem import StageProblem, Topology

Policy = Callable[[StageProblem], Iterator[Plan]]


def no_replicas(problem: StageProblem) -> Iterator[Plan]:
    """Every expert computed at home: what the others are compared with."""
    _, layers, ranks, _ = problem.load.shape
    slots = problem.spare_slots
    for load in problem.load:
        yield Plan(
            home=problem.home,
            load=load,
            replica_expert=np.full((layers, ranks, slots), -1, np.int32),
            replica_tokens=np.zeros((layers, ranks, ranks, slots), np.int64),
            bound=lower_bound(load.sum(axis=1), problem.home, ranks, slots),
        )


def foremoe(problem: StageProblem) -> Iterator[Plan]:
    """Replicas, quotas and split of each micro-step on its own.

    With a cost model and no target, those that take the least time; with a cost model and a target,
    those that reach the target, but for layers that replicas do not speed up.
    """
    for load in problem.load:
        if problem.cost is not None and problem.target is None:
            yield fastest_plan(problem, load, problem.cost)
            continue
        plan = plan_micro_step(problem, load, problem.target)
        if problem.cost is not None:
            undo_slower(plan, problem.topology.ranks_per_node, problem.cost)
        yield plan


POLICIES: dict[str, Policy] = {
    "none": no_replicas,
    "foremoe": foremoe,
    "resident": resident,
    "lpt-homes": baselines.lpt_homes,
    "eplb-history": baselines.eplb_history,
    "eplb-history-in-node": baselines.eplb_history_in_node,
    "eplb-oracle": baselines.eplb_oracle,
    "eplb-oracle-in-node": baselines.eplb_oracle_in_node,
    "greedy": baselines.greedy,
    "greedy-in-node": baselines.greedy_in_node,
    "alias": baselines.alias,
    "alias-in-node": baselines.alias_in_node,
}

# Policies that leave every expert at its home: what a running job can follow.
HOME_POLICIES = tuple(n for n in POLICIES if not n.startswith(("lpt-", "eplb-")))


def warm_up(names: Iterable[str] = POLICIES) -> None:
    """Compile the policies' kernels, or load them from the cache, so that no plan has to wait."""
    load = np.zeros((1, 1, 2, 2), np.int64)
    load[..., 0] = 4
    free = CostModel(*[0] * len(fields(CostModel)))
    for ranks_per_node, cost in product((2, 1), (None, free)):
        problem = StageProblem(
            load=load,
            home=contiguous_homes(1, 2, 2),
            mini_batch=np.zeros(1, np.int32),
            topology=Topology(2, ranks_per_node),
            spare_slots=1,
            cost=cost,
        )
        for name in names:
            for _ in POLICIES[name](problem):
                pass
