"""The demo's parts that have closed forms: task, advantages, loss, batches, schedules, figures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from foremoe.commands import demo as demo_command
from foremoe.demo import grpo, task
from foremoe.demo.options import DemoOptions
from foremoe.demo.schedule import message, recompute_schedule, update_schedule
from foremoe.demo.sequence import Batch, Sequence
from foremoe.errors import InvalidInputError


def sequence(name: str, prompt: int, answer: int, reward: float = 0.0) -> Sequence:
    tokens = np.arange(prompt + answer) % task.VOCABULARY
    expert_ids = np.ones((len(tokens) - 1, 2, 3), np.int16)
    return Sequence(name, tokens, prompt, expert_ids, reward)


def test_the_reward_is_the_share_of_right_positions() -> None:
    problem = task.Problem(np.array([10, 3, 1, 2, 11]), np.array([1, 2, 3, task.END]))
    assert task.reward(problem, np.array([1, 2, 3, task.END])) == 1.0
    assert task.reward(problem, np.array([1, 3, 2, task.END])) == 0.5
    assert task.reward(problem, np.array([1, 2, 3, 4, 5, 6, 7, 8])) == pytest.approx(3 / 8)


def test_drawn_problems_are_solved_by_sorting() -> None:
    problem = task.draw(np.random.default_rng(0))
    assert sorted(problem.prompt[1:-1]) == problem.answer[:-1].tolist()


def test_advantages_are_standardised_within_each_group() -> None:
    sequences = [sequence(str(i), 2, 2, reward) for i, reward in enumerate([0, 1, 0.5, 0.5])]
    grpo.assign_advantages(sequences, 2)
    advantages = [s.advantage for s in sequences]
    assert advantages == pytest.approx([-1, 1, 0, 0], abs=1e-3)


def test_a_batch_pads_right_and_trains_answers_only() -> None:
    batch = Batch.of([sequence("a", 3, 2), sequence("b", 2, 5)])
    assert batch.tokens.shape == (2, 6)
    assert batch.present.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert batch.trained.tolist() == [
        [False, False, True, True, False, False],
        [False, True, True, True, True, True],
    ]
    assert (batch.targets[1, :6] == torch.arange(1, 7)).all()
    given = batch.expert_ids.view(2, 6, 2, 3)
    assert ((given >= 0).all(dim=(2, 3)) == batch.present).all()


def test_the_loss_clips_only_what_would_gain() -> None:
    batch = Batch.of([sequence("a", 1, 3), sequence("b", 1, 3)])
    batch.advantage[:] = torch.tensor([[1.0], [-1.0]])
    old = torch.zeros(2, 3)
    new = torch.log(torch.tensor([[2.0, 0.5, 1.0], [2.0, 0.5, 1.0]]))
    loss = grpo.policy_loss(new, old, batch, clip=0.2, tokens=6)
    gains = [1.2, 0.5, 1.0, -2.0, -0.8, -1.0]
    assert math.isclose(loss.item(), -sum(gains) / 6, rel_tol=1e-6)


def test_schedules_hold_every_sequence_once() -> None:
    options = DemoOptions()
    sequences = [sequence(str(i), 2, 2) for i in range(options.sequences)]
    for schedule, mini_batches in (
        (recompute_schedule(sequences, options), 1),
        (update_schedule(sequences, options), options.mini_batches),
    ):
        steps = message(schedule, mini_batches)
        names = [name for step in steps for rank in step.ranks for name in rank]
        assert sorted(names) == sorted(s.sequence_id for s in sequences)
        assert {len(step.ranks) for step in steps} == {options.ranks}
        assert sorted({step.mini_batch for step in steps}) == list(range(mini_batches))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ranks": 3}, "divide 16 experts"),
        ({"ranks": 1}, "2 or more"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        DemoOptions(**wrong)


def test_every_documented_option_reaches_the_demo() -> None:
    names = DemoOptions.__dataclass_fields__
    assert set(demo_command._HELP) <= set(names)
    assert names["json"].type == Path | None
