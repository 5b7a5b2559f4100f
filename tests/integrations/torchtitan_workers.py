"""Ranks that run a decoder of torchtitan's own MoE layers, on ForeMoE and without."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

import foremoe
from foremoe.errors import InvalidInputError
from foremoe.integrations.attached import Attached
from foremoe.routing.router_losses import LossWeights, RouterLosses
from foremoe.training.attachment import AttachOptions
from foremoe.vocabulary import Stage
from tests.integrations import torchtitan_cpu
from tests.training.dense import Case
from tests.training.workers import STEP, RandomPlans

SEQUENCES, LENGTH, VOCABULARY = 2, 12, 40
TOKENS = SEQUENCES * LENGTH

Run = tuple[list[Tensor], dict[str, Tensor]]
Build = Callable[..., Any]


def case_for(ranks: int) -> Case:
    """Layers 1 and 3; two micro-steps."""
    return Case(seed=5, ranks=ranks, layers=2, mini_batches=1, micro_steps=2, layer_ids=(1, 3))


def on_two_ranks(rank: int) -> dict[str, Any]:
    """All that is tested there: processes are slow to start."""
    with torchtitan(2) as build:
        from torchtitan.distributed.activation_checkpoint import SelectiveAC

        return {
            "softmax": train(rank, 2, build, checkpointing=SelectiveAC),
            "gpt_oss": train(rank, 2, build, gpt_oss=True),
            "life": live_on(rank, 2, build),
            "replay": record_and_replay(rank, 2, build),
            "losses": observe_losses(rank, 2, build),
            "refusals": refusals(2, build),
        }


def on_four_ranks(rank: int) -> dict[str, Any]:
    with torchtitan(4) as build:
        from torchtitan.distributed.activation_checkpoint import FullAC

        return {
            "trained": train(rank, 4, build, score_func="sigmoid", checkpointing=FullAC),
            "refusal": refusal(build(expert_parallel=2, replicas=2), case_for(4)),
        }


@contextmanager
def torchtitan(ranks: int) -> Iterator[Build]:
    """What its trainer sets up, for experts divided over all ranks."""
    torchtitan_cpu.prepare()
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed.utils import get_spmd_context, set_spmd_backend

    from tests.integrations import torchtitan_model

    # FSDP of torch 2.13 does not take spmd_types' parameters.
    backend: Any = "partial_dtensor"
    set_spmd_backend(backend)

    @cache  # a mesh is many groups
    def meshes(expert_parallel: int, replicas: int) -> ParallelDims:
        return ParallelDims(
            dp_replicate=replicas,
            dp_shard=ranks // replicas,
            cp=1,
            tp=1,
            pp=1,
            ep=expert_parallel,
            world_size=ranks,
            spmd_backend=backend,
        )

    def build(expert_parallel: int = ranks, replicas: int = 1, **options: Any) -> Any:
        used = meshes(expert_parallel, replicas)
        return torchtitan_model.build(case_for(ranks), used, **options)

    with get_spmd_context()():
        yield build


def join(model: nn.Module, case: Case, optimizers: Sequence[Optimizer] = ()) -> Attached:
    """Attach, with random plans in place of a daemon's."""
    options = AttachOptions(address=None, spare_slots=case.spare_slots)
    attached = foremoe.attach(model, options, optimizers)
    attached.session._client = RandomPlans(case, dist.get_rank())
    return attached


def tokens(rank: int, micro_step: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * rank + micro_step)
    return torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)


def train(rank: int, ranks: int, build: Build, **options: Any) -> dict[str, Any]:
    """One mini-batch as torchtitan alone runs it, attached at home, balanced, and detached."""
    case = case_for(ranks)
    stock, model = build(overrides=(), **options), build(**options)
    results: dict[str, Any] = {"alone": train_alone(stock, case, rank)}
    checkpoint = state_of(stock)
    attached = join(model, case)
    for name, balanced in (("at home", False), ("balanced", True)):
        results[name], results[f"{name} tokens"] = train_attached(
            attached, model, case, rank, balanced
        )
    results["same checkpoint"] = same(checkpoint, state_of(model))
    attached.detach()
    results["detached"] = train_alone(model, case, rank)
    return results


def train_alone(model: Any, case: Case, rank: int) -> Run:
    outputs = [step(model, tokens(rank, index)) for index in range(case.total)]
    return outputs, take_gradients(model)


def train_attached(
    attached: Attached, model: Any, case: Case, rank: int, balanced: bool
) -> tuple[Run, list[list[int]]]:
    """Also how many pairs this rank computed, by micro-step and layer."""
    outputs = []
    with attached.session.stage(STEP, Stage.UPDATE, balanced=balanced) as run:
        for index in range(case.total):
            with attached.session.micro_step(index):
                outputs.append(step(model, tokens(rank, index)))
    assert all(record.balanced == balanced for record in run.records)
    computed = [record.computed_tokens.tolist() for record in run.records]
    return (outputs, take_gradients(model)), computed


def step(model: Any, batch: Tensor) -> Tensor:
    output: Tensor = model(batch)
    (output.float() * torch.linspace(-1, 1, VOCABULARY)).sum().backward()
    return output.detach().float()


def take_gradients(model: nn.Module) -> dict[str, Tensor]:
    """This rank's part of the gradients, and the counts for the selection bias; both cleared."""
    taken = {name: local(p.grad).clone() for name, p in model.named_parameters()}
    for name, buffer in model.named_buffers():
        if "tokens_per_expert" in name:
            taken[name] = buffer.clone()
            buffer.zero_()
    model.zero_grad()
    return taken


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: local(tensor).clone() for name, tensor in model.state_dict().items()}


def local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def evaluate(attached: Attached, model: Any, case: Case, rank: int) -> list[Tensor]:
    """Outputs of a balanced recompute stage."""
    outputs = []
    with torch.no_grad(), attached.session.stage(STEP, Stage.RECOMPUTE) as run:
        for index in range(case.total):
            with attached.session.micro_step(index):
                outputs.append(model(tokens(rank, index)).float())
    assert all(record.balanced for record in run.records)
    return outputs


def live_on(rank: int, ranks: int, build: Build) -> dict[str, Any]:
    """A step, moved homes, other weights: outputs after each, balanced and of torchtitan alone."""
    case = case_for(ranks)
    stock, model = build(overrides=()), build()
    before = state_of(model)
    optimizers = [torch.optim.SGD(one.parameters(), lr=1e-3) for one in (stock, model)]
    attached = join(model, case, optimizers[1:])
    attached.follow(optimizers[1])

    def compare() -> tuple[list[Tensor], list[Tensor]]:
        return evaluate(attached, model, case, rank), alone(stock, case, rank)

    results: dict[str, Any] = {"before": compare()}
    with attached.session.stage(STEP, Stage.UPDATE):
        for index in range(case.total):
            step(stock, tokens(rank, index))
            with attached.session.micro_step(index):
                step(model, tokens(rank, index))
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    results["stepped"] = compare()
    home = np.random.default_rng(3).permuted(attached.session.layout.home, axis=1)
    assert attached.session.move_homes(home) > 0
    results["moved"] = compare()
    with attached.session.homes_in_order():
        load(model, before)
    load(stock, before)
    attached.session.weights_changed()
    results["loaded"] = compare()
    attached.detach()
    results["same checkpoint"] = same(before, state_of(model))
    return results


@torch.no_grad()
def alone(model: Any, case: Case, rank: int) -> list[Tensor]:
    return [model(tokens(rank, index)).float() for index in range(case.total)]


@torch.no_grad()
def load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        local(tensor).copy_(weights[name])


def record_and_replay(rank: int, ranks: int, build: Build) -> dict[str, Any]:
    """What the routers chose, replayed in a model that would choose otherwise."""
    case = case_for(ranks)
    model = build()
    attached = join(model, case)
    batch = tokens(rank, 0)
    results: dict[str, Any] = {}
    with torch.no_grad(), attached.session.stage(STEP, Stage.RECOMPUTE):
        with attached.session.micro_step(0), attached.replay.record() as recorded:
            live = model(batch)
        ids = recorded()
        results["shape"] = list(ids.shape)
        for _, buffer in model.named_buffers():
            buffer.copy_(buffer.flip(0))  # other selection biases
        results["other live"] = not torch.equal(model(batch), live)
        with attached.session.micro_step(1), attached.replay.replay(ids):
            results["replayed as live"] = torch.allclose(model(batch), live, rtol=0.02, atol=0.02)
    padded = ids.clone().long()
    padded[-3:] = -1
    with torch.no_grad(), attached.replay.replay(padded):
        output = model(batch).flatten(0, 1)
    results["others stay"] = torch.allclose(
        output[:-3], live.flatten(0, 1)[:-3], rtol=0.02, atol=0.02
    )
    with attached.replay.replay(padded):
        model(batch).float().sum().backward()
    results["router learns"] = all(
        bool((local(p.grad) != 0).any()) for n, p in model.named_parameters() if "gate" in n
    )
    attached.detach()
    return results


def observe_losses(rank: int, ranks: int, build: Build) -> dict[str, Any]:
    """ForeMoE's z-loss of torchtitan's routers, and by hand from their gates."""
    case = case_for(ranks)
    model = build()
    attached = join(model, case)
    losses = RouterLosses(attached.replay.layers, case.experts, LossWeights(z=1.0))
    attached.replay.observers.append(losses)
    logits: list[Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("router.gate"):
            module.register_forward_hook(lambda _, __, output: logits.append(output.detach()))
    with losses.observing():
        model(tokens(rank, 0))
    by_hand = torch.stack([one.logsumexp(dim=-1).square().mean() for one in logits]).mean()
    result = {"observed": losses.total().item(), "by hand": by_hand.item()}
    attached.detach()
    return result


def refusals(ranks: int, build: Build) -> list[str]:
    """What attach says to models that it cannot take."""
    case = case_for(ranks)
    compiled = build()
    compiled.layers["1"]._compiled_call_impl = compiled.layers["1"].__call__
    attached = build()
    leave = join(attached, case)
    part = build()
    part.lm_head = None
    models = [build(overrides=()), compiled, attached, part, build(expert_parallel=1)]
    messages = [refusal(model, case) for model in models]
    leave.detach()
    return messages


def refusal(model: nn.Module, case: Case) -> str:
    with pytest.raises(InvalidInputError) as refused:
        join(model, case)
    return str(refused.value)
