"""Moves of homes pay for themselves, or do not happen."""

import dataclasses

import numpy as np

from foremoe.planner.cost import layer_seconds
from foremoe.planner.home_moves import homes_that_pay, move_picoseconds
from foremoe.planner.policies import foremoe
from foremoe.planner.preset import cluster_preset, cost_model, model_preset
from foremoe.planner.problem import StageProblem, check_homes
from foremoe.vocabulary import Stage
from tests.planner.problems import skewed_problem

COST = cost_model(model_preset("qwen3-30b-a3b"), cluster_preset("h100"), Stage.UPDATE)
FREE = dataclasses.replace(COST, near_move=0, far_move=0)
DEAR = dataclasses.replace(COST, near_move=2**44, far_move=2**44)


def uneven(micro_steps: int) -> StageProblem:
    """The hot experts of every micro-step have their homes on the first ranks."""
    problem = skewed_problem(3, 8, 4, 32, 1, micro_steps=micro_steps)
    problem.load[..., :8] *= 4
    return problem


def moved(problem: StageProblem, cost: object) -> int:
    home = homes_that_pay(problem, cost)  # type: ignore[arg-type]
    check_homes(home, problem.topology.ranks)
    return int(np.count_nonzero(home != problem.home))


def test_moves_happen_where_they_pay() -> None:
    problem = uneven(micro_steps=3)
    assert moved(problem, FREE) > 0
    assert moved(problem, DEAR) == 0


def test_more_micro_steps_pay_for_more_moves() -> None:
    short, long = uneven(micro_steps=1), uneven(micro_steps=1)
    long = dataclasses.replace(
        long, load=np.tile(long.load, (400, 1, 1, 1)), mini_batch=np.zeros(400, np.int32)
    )
    assert moved(short, COST) < moved(long, COST)


def test_moving_and_the_step_together_never_take_longer_than_staying() -> None:
    problem = dataclasses.replace(uneven(micro_steps=6), cost=COST)
    home = homes_that_pay(problem, COST)

    def step_seconds(one: StageProblem) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        width = one.topology.ranks_per_node
        return np.sum([layer_seconds(COST, plan, width).total for plan in foremoe(one)], axis=0)

    moving = move_picoseconds(problem.home, home, 4, COST) / 1e12
    after = step_seconds(dataclasses.replace(problem, home=home)) + moving
    assert np.all(after <= step_seconds(problem) + 1e-9)


def test_the_busiest_link_counts() -> None:
    """Experts 0 and 1 leave rank 0 for the other node; rank 1 gives one within its node."""
    before = np.array([[0, 0, 1, 1, 2, 2, 3, 3]], np.int32)
    after = np.array([[2, 3, 0, 1, 0, 2, 1, 3]], np.int32)
    assert move_picoseconds(before, after, 2, COST).tolist() == [2 * COST.far_move]
    assert move_picoseconds(before, before, 2, COST).tolist() == [0]
