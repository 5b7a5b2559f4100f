"""The checker refuses every broken plan, and names the rule and the place."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from foremoe.errors import InvalidInputError
from foremoe.planner.plan import Plan
from foremoe.planner.policies import foremoe
from foremoe.planner.validate import validate
from tests.planner.problems import skewed_problem

PROBLEM = skewed_problem(5, 4, 2, 8, 2)


def broken(change: Callable[[Plan], None]) -> Plan:
    plan = next(foremoe(PROBLEM))
    copy = dataclasses.replace(
        plan, **{name: getattr(plan, name).copy() for name in Plan.__dataclass_fields__}
    )
    change(copy)
    return copy


def first_replica(plan: Plan) -> tuple[int, int, int]:
    layer, rank, slot = np.argwhere(plan.replica_expert >= 0)[0]
    return int(layer), int(rank), int(slot)


def serve_too_much(plan: Plan) -> None:
    layer, rank, slot = first_replica(plan)
    plan.replica_tokens[layer, 0, rank, slot] = plan.load[layer, 0].max() + 1


def serve_negative(plan: Plan) -> None:
    layer, rank, slot = first_replica(plan)
    plan.replica_tokens[layer, 0, rank, slot] = -1


def put_on_home(plan: Plan) -> None:
    layer, rank, slot = first_replica(plan)
    plan.replica_expert[layer, rank, slot] = np.flatnonzero(plan.home[layer] == rank)[0]


def put_twice(plan: Plan) -> None:
    layer, rank, _ = first_replica(plan)
    plan.replica_expert[layer, rank] = plan.replica_expert[layer, rank, 0]
    plan.replica_tokens[layer, :, rank] = 0


def empty_slot_with_tokens(plan: Plan) -> None:
    plan.replica_expert[first_replica(plan)] = -1


def no_such_expert(plan: Plan) -> None:
    plan.replica_expert[first_replica(plan)] = 8


def no_such_rank(plan: Plan) -> None:
    plan.home[0, 0] = 4


def uneven_homes(plan: Plan) -> None:
    plan.home[0, :3] = 0


def other_load(plan: Plan) -> None:
    plan.load[0, 0, 0] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (serve_too_much, "replicas serve more pairs than there are at layer row 0, source 0"),
        (serve_negative, "replica_tokens is negative at layer row 0, source 0"),
        (put_on_home, "capacity: a replica on its own home at layer row 0"),
        (put_twice, "capacity: an expert twice on one rank at layer row 0"),
        (empty_slot_with_tokens, "an empty slot is given tokens at layer row 0"),
        (no_such_expert, "replica_expert is no expert at layer row 0"),
        (no_such_rank, "home is no rank at layer row 0, expert 0"),
        (uneven_homes, "does not give every rank 2 home experts"),
        (other_load, "made for another load"),
    ],
)
def test_a_broken_plan_is_refused(change: Callable[[Plan], None], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        validate(broken(change), PROBLEM.load[0], PROBLEM.topology, PROBLEM.spare_slots)


def test_a_plan_with_more_slots_than_there_are_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="2 slots per rank and layer, there are 1"):
        validate(next(foremoe(PROBLEM)), PROBLEM.load[0], PROBLEM.topology, 1)


def test_a_plan_of_another_shape_is_refused() -> None:
    plan = dataclasses.replace(next(foremoe(PROBLEM)), bound=np.zeros(1, np.int64))
    with pytest.raises(InvalidInputError, match="bound has shape"):
        validate(plan, PROBLEM.load[0], PROBLEM.topology, PROBLEM.spare_slots)
