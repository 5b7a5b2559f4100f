"""Ranks that train with AdamW while experts change homes between mini-batches."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from foremoe.client.controller import ControllerClient
from foremoe.errors import ConflictError, InvalidInputError
from foremoe.planner.homes import contiguous_homes
from foremoe.training.attachment import AttachOptions, open_session
from foremoe.training.layer import MoELayer
from foremoe.training.session import RankSession
from foremoe.vocabulary import DegradedReason, Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.training.daemon_workers import announce, wait_connected
from tests.training.dense import Case
from tests.training.workers import STEP, RandomPlans, forward, forward_backward, make_layer

State = dict[str, Tensor]


def some_homes(case: Case, number: int) -> NDArray[np.int32]:
    generator = np.random.default_rng([case.seed, number])
    return generator.permuted(contiguous_homes(case.layers, case.experts, case.ranks), axis=1)


class Trainer:
    """The case's layers on this rank, an AdamW of all their parameters, and a session."""

    def __init__(self, case: Case, address: str | None, moving: bool) -> None:
        group = dist.group.WORLD
        assert group is not None
        self.case = case
        self.layers: list[MoELayer] = [make_layer(case, i, group) for i in range(case.layers)]
        self.parameters = [p for layer in self.layers for p in layer.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.01)
        self.attach(address, moving)

    def attach(self, address: str | None, moving: bool) -> None:
        options = AttachOptions(
            address=address, spare_slots=self.case.spare_slots, plan_wait_seconds=20.0
        )
        self.session: RankSession = open_session(
            [layer.home_experts() for layer in self.layers],
            self.layers[0].group,
            options,
            optimizers=[self.optimizer] if moving else [],
        )
        for layer in self.layers:
            layer.session = self.session

    def step(self) -> State:
        """One optimizer step; this rank's gradients, experts by their ids."""
        gradients: State = {}
        for layer in self.layers:
            router = layer.router.weight
            router.grad = torch.zeros_like(router) if router.grad is None else router.grad
            dist.all_reduce(router.grad)
            gradients[f"{layer.layer} router"] = router.grad.clone()
            for name, parameter in layer.home_experts().parameters.items():
                assert isinstance(parameter, torch.nn.Parameter)
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                for row, expert in enumerate(layer.home_experts().experts):
                    gradients[f"{layer.layer} {name} {expert}"] = parameter.grad[row].clone()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.session.weights_changed()
        return gradients

    def state(self) -> State:
        """State dicts of model and optimizer, flat."""
        state = {f"{layer.layer} {n}": t for layer in self.layers for n, t in _state(layer).items()}
        for index, own in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer {index} {name}": tensor.clone() for name, tensor in own.items()}
        return state


def _state(layer: MoELayer) -> State:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def train(rank: int, case: Case, moving: bool) -> dict[str, Any]:
    """Random plans; with moves between the mini-batches, or without."""
    trainer = Trainer(case, None, moving)
    session = trainer.session
    plans = session._client = RandomPlans(case, rank)
    outputs, gradients = [], []
    for mini_batch in range(case.mini_batches):
        if moving and mini_batch:
            assert session.move_homes(some_homes(case, mini_batch)) > 0
            assert np.array_equal(plans.home, some_homes(case, mini_batch))
        first = mini_batch * case.micro_steps
        with session.stage(STEP, Stage.UPDATE) as run:
            for index in range(first, first + case.micro_steps):
                with session.micro_step(index):
                    outputs.append(forward_backward(case, rank, index, trainer.layers))
        assert all(record.balanced for record in run.records)
        gradients.append(trainer.step())
    if moving:
        _check_guards(trainer)
    home = session.layout.home
    with session.homes_in_order():
        state = trainer.state()
    assert session.layout.home is home or np.array_equal(session.layout.home, home)
    gathered = _gather(trainer)
    session.close()
    return {"outputs": outputs, "gradients": gradients, "state": state, "gathered": gathered}


def follow_the_daemon(rank: int, case: Case, folder: Path, pid: int, moving: bool) -> Any:
    """One RL step a mini-batch; the daemon chooses homes for ranks that move experts.

    It is killed and another one started before the last step. Outputs, state, and by step the
    homes, and whether all micro-steps were balanced.
    """
    trainer = Trainer(case, str(folder / "s"), moving)
    session = trainer.session
    controller = ControllerClient(str(folder / "s"), timeout_seconds=20.0)
    outputs, homes, balanced = [], [], []
    restarted = None
    for step in range(case.mini_batches):
        if step == case.mini_batches - 1:
            if rank == 0:
                os.kill(pid, signal.SIGKILL)
                restarted = DaemonProcess(folder).wait_serving()
            wait_connected(session)
        announce(rank, case, step, case.micro_steps, controller)
        with session.stage(step, Stage.UPDATE) as run:
            for index in range(case.micro_steps):
                with session.micro_step(index):
                    micro_step = step * case.micro_steps + index
                    outputs.append(forward_backward(case, rank, micro_step, trainer.layers))
        balanced.append(all(record.balanced for record in run.records))
        homes.append(session.layout.home)
        trainer.step()
    with session.homes_in_order():
        state = trainer.state()
    session.close()
    controller.close()
    if restarted is not None:
        assert restarted.terminate() == 0
    return {"outputs": outputs, "state": state, "homes": homes, "balanced": balanced}


def _gather(trainer: Trainer) -> State:
    """All ranks' rows of every expert parameter, in logical order by the layout's word."""
    found = {}
    for layer in trainer.layers:
        rows = trainer.session.layout.rows(layer.layer)
        for name, parameter in (("gate_up", layer.gate_up), ("down", layer.down)):
            parts = [torch.empty_like(parameter) for _ in range(trainer.case.ranks)]
            dist.all_gather(parts, parameter.detach())
            found[f"{layer.layer} {name}"] = torch.cat(parts)[rows]
    return found


def _check_guards(trainer: Trainer) -> None:
    """Whatever takes experts by position is refused while they are elsewhere."""
    state: Any = {}
    for forbidden in (
        trainer.layers[0].state_dict,
        trainer.optimizer.state_dict,
        lambda: trainer.layers[0].load_state_dict(state),
        lambda: trainer.optimizer.load_state_dict(state),
    ):
        with pytest.raises(InvalidInputError, match=r"session\.homes_in_order\(\)"):
            forbidden()


def attach_again(rank: int, case: Case) -> list[Tensor]:
    """A micro-step fails with homes moved; what forward gives before, and attached again."""
    trainer = Trainer(case, None, moving=True)
    state = trainer.state()
    outputs = [_forward(trainer, rank)]
    for back in (False, True):
        attached = trainer.session.layout.home
        trainer.session.move_homes(some_homes(case, 1 + back))
        with pytest.raises(ZeroDivisionError):
            _fail(trainer, rank)
        trainer.optimizer.zero_grad()
        if back:
            trainer.session.move_homes(attached)
        trainer.session.close()
        if not back:
            _check_guards(trainer)
        trainer.attach(None, moving=True)
        assert np.array_equal(trainer.session.layout.home, attached) == back
        outputs.append(_forward(trainer, rank))
        with trainer.session.homes_in_order():
            assert all(torch.equal(tensor, state[n]) for n, tensor in trainer.state().items())
    trainer.session.close()
    return outputs


def _fail(trainer: Trainer, rank: int) -> None:
    with trainer.session.stage(STEP, Stage.UPDATE), trainer.session.micro_step(0):
        forward_backward(trainer.case, rank, 0, trainer.layers)
        raise ZeroDivisionError


def _forward(trainer: Trainer, rank: int) -> Tensor:
    """Outputs of a balanced micro-step."""
    session = trainer.session
    plans = session._client = RandomPlans(trainer.case, rank)
    plans.home = session.layout.home
    with torch.no_grad(), session.stage(STEP, Stage.RECOMPUTE), session.micro_step(0) as record:
        output = forward(trainer.case, rank, 0, trainer.layers)
    assert record.balanced
    session._client = None
    return output


def homes_that_stay(rank: int, case: Case) -> None:
    """What cannot move is refused, or run without plans; the session goes on in both cases."""
    group = dist.group.WORLD
    assert group is not None
    layer = make_layer(case, 0, group)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1)] if rank else []
    with pytest.raises(ConflictError, match="optimizers on all ranks"):
        open_session([layer.home_experts()], group, AttachOptions(address=None), optimizers)
    trainer = Trainer(case, None, moving=False)
    with pytest.raises(InvalidInputError, match="optimizers="):
        trainer.session.move_homes(some_homes(case, 1))
    trainer.session.close()

    trainer = Trainer(case, None, moving=True)
    session, plans = trainer.session, RandomPlans(case, rank)
    session._client = plans
    attached = session.layout.home
    goal = plans.home = some_homes(case, 1)
    parameter = trainer.layers[-1].down
    parameter.grad = torch.ones_like(parameter) if rank else None
    for home in (attached, goal):  # the optimizer step in between clears the gradient
        with session.stage(STEP, Stage.UPDATE) as run:
            with pytest.raises(InvalidInputError, match="leave the stage"):
                session.move_homes(attached)
            with session.micro_step(0) as record:
                forward_backward(case, rank, 0, trainer.layers)
        assert run.records == [record]
        assert record.balanced == (home is goal)
        assert record.balanced or record.degraded_reason == DegradedReason.OTHER_LAYOUT
        assert np.array_equal(session.layout.home, home)
        trainer.step()
    session.close()
