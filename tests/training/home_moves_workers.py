"""Ranks whose experts have known parameters and gradients, so that each can be told from any."""

import os
import signal
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from foremoe.errors import ForemoeError, TransferError
from foremoe.planner.homes import contiguous_homes
from foremoe.training import home_moves
from foremoe.training.expert_state import ExpertState
from foremoe.training.home_experts import HomeExperts
from foremoe.training.home_moves import move_experts

LAYERS, EXPERTS = (1, 4), 12
SHAPES = {"gate_up": (6, 5), "down": (5, 3)}
EXPERT_BYTES = 1664  # AMSGrad in float64 has four tensors of 256 and of 128 bytes, and two steps
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}
Homes = NDArray[np.int32]
Experts = dict[str, dict[str, Tensor]]


def truth(kind: str, step: int, layer: int, expert: int, name: str) -> Tensor:
    """A parameter or a gradient of one expert."""
    seed = [ord(kind), step, layer, expert, len(name)]
    values = np.random.default_rng(seed).normal(size=SHAPES[name])
    return torch.from_numpy(values)


def some_homes(seed: int, ranks: int) -> Homes:
    """Shared evenly, with nothing in particular staying."""
    generator = np.random.default_rng(seed)
    return generator.permuted(contiguous_homes(len(LAYERS), EXPERTS, ranks), axis=1)


class ToyExperts:
    """One rank's experts in all layers, fused or each with parameters of its own."""

    def __init__(self, rank: int, ranks: int, optimizer: str, fused: bool) -> None:
        self.home = contiguous_homes(len(LAYERS), EXPERTS, ranks)
        self.group = dist.group.WORLD
        self.fused = fused
        self.homes = []
        for row, layer in enumerate(LAYERS):
            owned = np.flatnonzero(self.home[row] == rank).tolist()
            values = {
                name: [truth("w", 0, layer, expert, name) for expert in owned] for name in SHAPES
            }
            parameters: Any = {
                name: nn.Parameter(torch.stack(each)) if fused else [nn.Parameter(v) for v in each]
                for name, each in values.items()
            }
            self.homes.append(HomeExperts(layer, parameters, tuple(owned)))
        self.optimizer = OPTIMIZERS[optimizer](self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        given: list[Any] = [p for home in self.homes for p in home.parameters.values()]
        return given if self.fused else [parameter for each in given for parameter in each]

    def step(self, step: int) -> None:
        for home in self.homes:
            for name, given in home.parameters.items():
                gradients = [truth("g", step, home.layer, e, name) for e in home.experts]
                if isinstance(given, nn.Parameter):
                    given.grad = torch.stack(gradients)
                else:
                    for parameter, gradient in zip(given, gradients, strict=True):
                        parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def move(self, home: Homes, **options: Any) -> int:
        assert self.group is not None
        moved = move_experts(self.homes, [self.optimizer], self.home, home, self.group, **options)
        self.home = home
        for row, one in enumerate(self.homes):
            one.hold(np.flatnonzero(home[row] == self.group.rank()).tolist(), in_order=False)
        return moved

    def tensors(self) -> list[Tensor]:
        """Everything in memory: parameters and their state."""
        state = [
            value for p in self.parameters() for _, value in sorted(self.optimizer.state[p].items())
        ]
        return [p.detach() for p in self.parameters()] + state

    def experts(self) -> Experts:
        """Every expert's parameters and state, by layer and id."""
        found: Experts = {}
        for home in self.homes:
            for row, expert in enumerate(home.experts):
                own = found[f"{home.layer}/{expert}"] = {}
                for name, given in home.parameters.items():
                    parameter = given if isinstance(given, nn.Parameter) else given[row]
                    state = {"": parameter.detach(), **self.optimizer.state[parameter]}
                    for key, value in state.items():
                        split = self.fused and value.ndim > 0
                        own[f"{name}.{key}"] = (value[row] if split else value).clone()
        return found


def train(rank: int, ranks: int) -> dict[str, tuple[Experts, Experts]]:
    """For each optimizer and kind of parameters: all experts after training with moves, without."""
    return {
        f"{optimizer}, {'fused' if fused else 'single'}, {limit}": (
            _train(ToyExperts(rank, ranks, optimizer, fused), limit),
            _train(ToyExperts(rank, ranks, optimizer, fused), None),
        )
        for optimizer in OPTIMIZERS
        for fused in (True, False)
        for limit in (EXPERT_BYTES, 1 << 20)
    }


def _train(toy: ToyExperts, staging_bytes: int | None) -> Experts:
    """Steps with moves between them if there is staging for it; all experts at the end."""
    assert toy.group is not None
    toy.step(0)
    addresses = [tensor.data_ptr() for tensor in toy.tensors()]
    for step in range(1, 4):
        if staging_bytes is not None:
            goal = some_homes(step, toy.group.size())
            expected = np.count_nonzero(goal != toy.home)
            with patch.object(home_moves, "_allocate", wraps=home_moves._allocate) as allocate:
                assert toy.move(goal, staging_bytes=staging_bytes) == expected > 0
            ((taken,),) = [call.args for call in allocate.call_args_list]
            assert 0 < taken <= staging_bytes
            for row, home in enumerate(toy.homes):
                assert list(home.experts) == np.flatnonzero(goal[row] == toy.group.rank()).tolist()
        toy.step(step)
    assert [tensor.data_ptr() for tensor in toy.tensors()] == addresses
    return toy.experts()


def uneven_steps(rank: int, ranks: int) -> Experts:
    """Experts with parameters of their own, each stepped another number of times, then moved."""
    toy = ToyExperts(rank, ranks, "AdamW", fused=False)
    for step in range(EXPERTS):
        for home in toy.homes:
            for name, given in home.parameters.items():
                for expert, parameter in zip(home.experts, given, strict=True):
                    if expert >= step:
                        parameter.grad = truth("g", step, home.layer, expert, name)
        toy.optimizer.step()
        toy.optimizer.zero_grad()
    before = [tensor.data_ptr() for tensor in toy.tensors()]
    toy.move(some_homes(1, ranks))
    assert [tensor.data_ptr() for tensor in toy.tensors()] == before
    return toy.experts()


REFUSALS = {  # what is wrong -> what all ranks say
    "other homes": "ConflictError: .* ranks 0 and 1 were given different homes",
    "uneven homes": "InvalidInputError: .* rank 0: home: layer row 0 does not give every rank 6",
    "no room": "ExhaustedError: .* but staging may take 1000",
    "gradient left": "InvalidInputError: .* rank 1: layer 1: down has a gradient",
    "state missing": "ConflictError: .* ranks 0 and 1 differ in layer 4 by .*down.exp_avg",
    "step differs": "ConflictError: .* layer 4 has .*'gate_up.step': 1.0.* but .*'gate_up.step': 2",
    "state unknown": "InvalidInputError: .* preconditioner .* cannot be told apart by expert",
    "other dtype": "ConflictError: .* ranks 0 and 1 differ in layer 1 by .*torch.float32",
    "optimizer missing": "InvalidInputError: .* layer 1: none of the optimizers .* holds gate_up",
    "not contiguous": "InvalidInputError: .* gate_up is not contiguous",
}


def refusals(rank: int, ranks: int) -> list[str]:
    """What is said to every move in ``REFUSALS``; nothing changes, and the ranks go on."""
    messages = []
    for wrong in REFUSALS:
        toy = ToyExperts(rank, ranks, "AdamW", fused=True)
        toy.step(0)
        goal, limit = _spoil(wrong, toy, rank)
        before = [tensor.clone() for tensor in toy.tensors()]
        held = [home.experts for home in toy.homes]
        try:
            toy.move(goal, staging_bytes=limit)
        except ForemoeError as error:
            messages.append(f"{type(error).__name__}: {error}")
        for tensor, old in zip(toy.tensors(), before, strict=True):
            assert torch.equal(tensor, old), wrong
        assert [home.experts for home in toy.homes] == held
    return messages


def _spoil(wrong: str, toy: ToyExperts, rank: int) -> tuple[Homes, int]:
    """The goal and the limit of a move that is wrong somewhere."""
    goal, limit = some_homes(5, 2), 1 << 20
    first, second, third, fourth = toy.parameters()
    state = toy.optimizer.state
    match wrong, rank:
        case "other homes", 1:
            goal = some_homes(6, 2)
        case "uneven homes", _:
            goal = np.zeros_like(goal)
        case "no room", _:
            limit = 1000
        case "gradient left", 1:
            second.grad = torch.zeros_like(second)
            second.grad[0, 0, 0] = 1e-30
        case "state missing", 1:
            state.pop(fourth)
        case "step differs", 1:
            state[third]["step"] += 1
        case "state unknown", _:
            state[first]["preconditioner"] = torch.eye(5)
        case "other dtype", 0:
            state[first]["exp_avg"] = state[first]["exp_avg"].float()
        case "optimizer missing", _:
            toy.optimizer = OPTIMIZERS["AdamW"]([torch.zeros(1)])
        case "not contiguous", _:
            first.data = first.data.transpose(1, 2).contiguous().transpose(1, 2)
    return goal, limit


DEATHS = {  # (class, method, call) before which rank 2 is killed
    "before the check": (home_moves._Mover, "__init__", 1),
    "between two sends": (ExpertState, "tensors", 4),
    "when it has received": (home_moves._Mover, "_barrier", 1),
    "before it writes": (home_moves._Mover, "_commit", 1),
    "in the second batch": (home_moves._Mover, "_receive", 2),
}


def lose_a_rank(rank: int, death: str) -> tuple[str, bool]:
    """Rank 2 of 3 is killed while experts move in batches; the error, and whether all is as was."""
    toy = ToyExperts(rank, 3, "AdamW", fused=True)
    toy.step(0)
    before = [tensor.clone() for tensor in toy.tensors()]
    if rank == 2:
        _die_at(*DEATHS[death])
    try:
        toy.move(some_homes(5, 3), staging_bytes=2 * EXPERT_BYTES, wait_seconds=20.0)
    except TransferError as error:
        same = [torch.equal(now, old) for now, old in zip(toy.tensors(), before, strict=True)]
        return str(error), all(same)
    raise AssertionError("the move went through")


def _die_at(owner: type, method: str, call: int) -> None:
    original = getattr(owner, method)
    calls = 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, method, dying)
