"""Gradients that replicas still hold: no optimizer step without them, whatever the caller does."""

import pytest
import torch

from foremoe.errors import NotReadyError, TransferError
from foremoe.training.layer import MoELayer
from foremoe.training.session import RankSession
from foremoe.vocabulary import Stage
from tests.processes import run_ranks
from tests.training.dense import Case, train_dense
from tests.training.test_same_result import TOLERANCE
from tests.training.workers import STEP, RandomPlans, build, forward_backward

CASE = Case(seed=15, ranks=2, mini_batches=1, micro_steps=3)


def _leave_early(rank: int) -> list[torch.Tensor]:
    """The stage is left one micro-step early: what was computed is at home then."""
    layers, session = build(CASE, None)
    session._client = RandomPlans(CASE, rank)
    optimizer = torch.optim.SGD(layers[0].parameters(), lr=0.1)
    critic = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    before = layers[0].down.detach().clone()
    with session.stage(STEP, Stage.UPDATE) as run:
        for index in range(CASE.micro_steps - 1):
            with session.micro_step(index):
                forward_backward(CASE, rank, index, layers)
        with pytest.raises(NotReadyError, match="leave the stage block, before the optimizer"):
            optimizer.step()
        with pytest.raises(NotReadyError, match="gradients are still with replicas"):
            session.weights_changed()
        critic.step()
        returned = run.records[-1].gradient_bytes
    assert torch.equal(layers[0].down, before), "no weight has changed"
    assert run.records[-1].gradient_bytes > returned
    gradients = [layer.down.grad.clone() for layer in layers if layer.down.grad is not None]
    optimizer.step()
    session.weights_changed()
    session.close()
    return gradients


def test_gradients_are_home_when_the_stage_is_left_early() -> None:
    two = Case(seed=15, ranks=2, mini_batches=1, micro_steps=2)
    expected = train_dense(two)["gradients"][2::3]
    results = run_ranks(_leave_early, 2)
    for index, gradient in enumerate(expected):
        actual = torch.cat([result[index] for result in results])
        assert torch.allclose(actual, gradient, rtol=0, atol=TOLERANCE)


def _step_inside(rank: int) -> None:
    """The micro-step is not over when backward is, but its gradients are complete."""
    case = Case(seed=15, ranks=2, mini_batches=1, micro_steps=1)
    layers, session = build(case, None)
    session._client = RandomPlans(case, rank)
    optimizer = torch.optim.SGD(layers[0].parameters(), lr=0.1)
    with session.stage(STEP, Stage.UPDATE) as run:
        with session.micro_step(0):
            forward_backward(case, rank, 0, layers)
            after_backward = [layer.down.grad.clone() for layer in layers]
            with pytest.raises(NotReadyError, match="leave the micro_step block before"):
                optimizer.step()
            with pytest.raises(NotReadyError, match="leave the micro_step block before"):
                session.weights_changed()
        assert run.records[0].gradient_bytes > 0
    for layer, gradient in zip(layers, after_backward, strict=True):
        assert torch.equal(layer.down.grad, gradient)
    optimizer.step()
    session.weights_changed()
    session.close()


def test_gradients_are_complete_after_backward_but_no_optimizer_steps_in_a_micro_step() -> None:
    run_ranks(_step_inside, 2)


def _run(rank: int, where: str, layers: list[MoELayer], session: RankSession) -> None:
    with session.stage(STEP, Stage.UPDATE):
        with session.micro_step(0):
            forward_backward(CASE, rank, 0, layers)
        if where == "between micro-steps":
            raise ZeroDivisionError
        with session.micro_step(1):
            raise ZeroDivisionError


def _fail(rank: int, where: str) -> None:
    layers, session = build(CASE, None)
    session._client = RandomPlans(CASE, rank)
    optimizer = torch.optim.SGD(layers[0].parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError):
        _run(rank, where, layers, session)
    for call in (optimizer.step, session.weights_changed):
        with pytest.raises(TransferError, match="repeat the mini-batch from zero gradients"):
            call()
    with (
        pytest.raises(TransferError, match="close the session and attach again"),
        session.stage(STEP, Stage.UPDATE),
    ):
        pass
    session.close()
    optimizer.step()


@pytest.mark.parametrize("where", ["between micro-steps", "in a micro-step"])
def test_after_an_exception_no_optimizer_steps_without_the_lost_gradients(where: str) -> None:
    run_ranks(_fail, 2, where)
