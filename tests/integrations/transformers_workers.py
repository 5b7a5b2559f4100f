"""Ranks that train tiny models through Transformers' own expert-parallel loading."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers.distributed import DistributedConfig
from transformers.utils.logging import disable_progress_bar

import foremoe
from foremoe.errors import InvalidInputError
from foremoe.integrations.attached import Attached
from foremoe.integrations.transformers import NAME, register
from foremoe.integrations.transformers_routers import hook_routers
from foremoe.routing.replay import RoutingReplay
from foremoe.training.attachment import AttachOptions
from foremoe.vocabulary import Stage
from tests.integrations.transformers_models import FAMILIES, VOCABULARY
from tests.training.dense import Case
from tests.training.workers import STEP, RandomPlans

SEQUENCES, LENGTH = 3, 9

Run = tuple[list[float], dict[str, Tensor]]


def case_for(family: str, ranks: int) -> Case:
    """One mini-batch of two micro-steps."""
    layers = FAMILIES[family].layers
    return Case(seed=31, ranks=ranks, layers=2, mini_batches=1, micro_steps=2, layer_ids=layers)


def tokens(rank: int, micro_step: int) -> Tensor:
    """The rank's batch: int64 ``[SEQUENCES, LENGTH]``."""
    generator = torch.Generator().manual_seed(100 * rank + micro_step)
    return torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)


def routing(case: Case, rank: int, micro_step: int) -> Tensor:
    """What is replayed: int64 ``[tokens, L, K]``."""
    many = Case(case.seed, case.ranks, layers=2, tokens=SEQUENCES * LENGTH + 5)
    ids = many.routing(0, 10 * micro_step + rank)[: SEQUENCES * LENGTH]
    return torch.from_numpy(np.ascontiguousarray(ids))


def loss_of(
    model: nn.Module, replay: RoutingReplay, case: Case, rank: int, micro_step: int
) -> Tensor:
    """Loss of one batch with replayed routing; the graph is kept."""
    batch = tokens(rank, micro_step)
    with replay.replay(routing(case, rank, micro_step)):
        loss: Tensor = model(batch, labels=batch).loss
    return loss


def load_stock(family: str, folder: Path, dtype: str) -> nn.Module:
    """The whole model in this process; the default experts' kernels know no float64."""
    return FAMILIES[family].load(folder, dtype, experts_implementation="eager")


def train_stock(family: str, folder: Path, ranks: int, dtype: str) -> Run:
    """The unmodified model in one process: losses of every batch, gradients of their mean."""
    model = load_stock(family, folder, dtype)
    case = case_for(family, ranks)
    replay, _ = hook_routers(model, case.layer_ids)
    losses = []
    for micro_step in range(case.total):
        for rank in range(ranks):
            loss = loss_of(model, replay, case, rank, micro_step)
            (loss / ranks).backward()
            losses.append(float(loss.item()))
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def load(family: str, folder: Path, ranks: int, dtype: str) -> nn.Module:
    """The model with its experts divided over the ranks."""
    disable_progress_bar()
    register()
    distributed = DistributedConfig(
        tp_size=1, fsdp_size=ranks, ep_size=ranks, ep_implementation=NAME
    )
    return FAMILIES[family].load(folder, dtype, distributed_config=distributed)


def join(model: nn.Module, case: Case, optimizers: Sequence[Optimizer] = ()) -> Attached:
    """Attach, with random plans in place of a daemon's."""
    options = AttachOptions(address=None, spare_slots=case.spare_slots)
    attached = foremoe.attach(model, options, optimizers)
    attached.session._client = RandomPlans(case, dist.get_rank())
    return attached


def train(
    rank: int, folders: dict[str, Path], ranks: int, dtypes: tuple[str, ...]
) -> dict[tuple[str, str], dict[str, Run]]:
    """Each family in each dtype, balanced and at home: losses and this rank's gradients."""
    results = {}
    for family, folder in folders.items():
        for dtype in dtypes:
            model = load(family, folder, ranks, dtype)
            attached = join(model, case_for(family, ranks))
            results[family, dtype] = {
                name: train_step(attached, model, case_for(family, ranks), rank, balanced)
                for name, balanced in (("at home", False), ("balanced", True))
            }
            attached.detach()
    return results


def on_two_ranks(rank: int, folders: dict[str, Path]) -> dict[str, Any]:
    """All that is tested there: processes are slow to start."""
    return {
        "trained": train(rank, folders, 2, ("float32", "bfloat16")),
        "life": live_on(rank, folders["qwen3_moe"], 2),
        "staying": train_adamw(rank, folders["qwen3_moe"], 2, moving=False),
        "moving": train_adamw(rank, folders["qwen3_moe"], 2, moving=True),
    }


def train_step(attached: Attached, model: nn.Module, case: Case, rank: int, balanced: bool) -> Run:
    """One mini-batch: losses and gradients; the model's are cleared."""
    losses = train_mini_batch(attached, model, case, rank, balanced)
    return losses, take_gradients(model)


def train_mini_batch(
    attached: Attached, model: nn.Module, case: Case, rank: int, balanced: bool
) -> list[float]:
    """Losses of its micro-steps."""
    losses = []
    with attached.session.stage(STEP, Stage.UPDATE, balanced=balanced) as run:
        for micro_step in range(case.total):
            with attached.session.micro_step(micro_step):
                loss = loss_of(model, attached.replay, case, rank, micro_step)
                loss.backward()
            losses.append(float(loss.item()))
    assert all(record.balanced == balanced for record in run.records)
    return losses


def take_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Whole dense gradients, this rank's expert gradients; the model's are cleared."""
    taken = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        assert isinstance(gradient, DTensor)
        experts = ".experts." in name
        taken[name] = (gradient.to_local() if experts else gradient.full_tensor()).clone()
        parameter.grad = None
    return taken


def train_adamw(rank: int, folder: Path, ranks: int, moving: bool) -> dict[str, Any]:
    """Float64 with a forward before every step; ``moving`` experts change homes in between.

    Losses, the full state dict and this rank's optimizer state at the end.
    """
    case = case_for("qwen3_moe", ranks)
    model = load("qwen3_moe", folder, ranks, "float64")
    for module in model.modules():
        if isinstance(module, FSDPModule):  # whole parameters outlive a forward without backward
            module.set_reshard_after_forward(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    attached = join(model, case, [optimizer] if moving else [])
    attached.follow(optimizer)
    losses = []
    for step in range(3):
        with torch.no_grad():
            losses.append(loss_of(model, attached.replay, case, rank, 9).item())
        if moving:
            home = np.random.default_rng(step).permuted(attached.session.layout.home, axis=1)
            assert attached.session.move_homes(home) > 0
        losses += train_mini_batch(attached, model, case, rank, balanced=True)
        optimizer.step()
        optimizer.zero_grad()
    if moving:
        with pytest.raises(InvalidInputError, match="homes_in_order"):
            model.state_dict()
    attached.detach()
    weights = {name: t.full_tensor().clone() for name, t in model.state_dict().items()}
    state = optimizer.state_dict()["state"]
    moments = [local(own["exp_avg_sq"]).clone() for own in state.values()]
    return {"losses": losses, "weights": weights, "moments": moments}


def evaluate(attached: Attached, model: nn.Module, case: Case, rank: int, step: int) -> list[float]:
    """Losses of a balanced recompute stage."""
    losses = []
    with torch.no_grad(), attached.session.stage(step, Stage.RECOMPUTE) as run:
        for micro_step in range(case.total):
            with attached.session.micro_step(micro_step):
                loss = loss_of(model, attached.replay, case, rank, micro_step)
            losses.append(float(loss.item()))
    assert all(record.balanced for record in run.records)
    return losses


def live_on(rank: int, folder: Path, ranks: int) -> dict[str, Any]:
    """What an attached model goes through; each event, and the losses after it."""
    case = case_for("qwen3_moe", ranks)
    model = load("qwen3_moe", folder, ranks, "float32")
    plain = state_of(model)
    attached = join(model, case)
    results: dict[str, Any] = {"attached": evaluate(attached, model, case, rank, STEP)}
    results["same state"] = same(plain, state_of(model))
    results["same files"] = saved_alike(model, folder, rank)

    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    attached.follow(optimizer)
    train_mini_batch(attached, model, case, rank, balanced=True)
    optimizer.step()
    optimizer.zero_grad()
    results["stepped"] = evaluate(attached, model, case, rank, STEP)

    stepped = switch(model, plain)
    attached.session.weights_changed()
    results["switched"] = evaluate(attached, model, case, rank, STEP)
    switch(model, stepped)
    attached.session.weights_changed()
    results["switched back"] = evaluate(attached, model, case, rank, STEP)
    reload(model)
    switch(model, plain)  # what still reads the old memory finds the weights of the step
    attached.session.weights_changed()
    results["reloaded"] = evaluate(attached, model, case, rank, STEP)

    attached.detach()
    attached.detach()
    hooks = [len(module._forward_hooks) for name, module in model.named_modules() if "gate" in name]
    results["hooks left"] = sum(hooks)
    with torch.no_grad():
        unhooked = RoutingReplay(case.layer_ids, case.top_k)
        results["detached live"] = [
            float(loss_of(model, unhooked, case, rank, m).item()) for m in range(case.total)
        ]
    again = join(model, case)
    results["attached again"] = evaluate(again, model, case, rank, STEP)
    again.detach()
    return results


def live_on_stock(folder: Path, ranks: int) -> dict[str, list[list[float]]]:
    """The same events in one process: losses by rank before and after the step, and unreplayed."""
    model = load_stock("qwen3_moe", folder, "float32")
    case = case_for("qwen3_moe", ranks)
    replay, _ = hook_routers(model, case.layer_ids)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    results = {"before": _losses(model, replay, case, ranks)}
    results["live"] = _losses(model, RoutingReplay(case.layer_ids, case.top_k), case, ranks)
    for micro_step in range(case.total):
        for rank in range(ranks):
            (loss_of(model, replay, case, rank, micro_step) / ranks).backward()
    optimizer.step()
    results["after"] = _losses(model, replay, case, ranks)
    return results


@torch.no_grad()
def _losses(model: nn.Module, replay: RoutingReplay, case: Case, ranks: int) -> list[list[float]]:
    return [
        [float(loss_of(model, replay, case, rank, m).item()) for m in range(case.total)]
        for rank in range(ranks)
    ]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of this rank's part of the state dict."""
    return {name: local(tensor).clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def saved_alike(model: nn.Module, folder: Path, rank: int) -> bool:
    """Whether ``save_pretrained`` writes the tensors the model was loaded from."""
    from safetensors.torch import load_file

    save: Any = model.save_pretrained
    save(folder / "again")
    dist.barrier()
    if rank != 0:
        return True
    files = [load_file(place / "model.safetensors") for place in (folder, folder / "again")]
    wide = [{name: t.double() for name, t in sorted(file.items())} for file in files]
    return same(*wide)


def switch(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put other weights into the model in place, as for a reference policy; gives the old ones."""
    old = state_of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local(parameter).copy_(weights[name])
    return old


def reload(model: nn.Module) -> None:
    """Bring every parameter back in other memory, as sleep and wake-up of a rollout may."""
    old = [local(parameter.detach()) for parameter in model.parameters()]
    model._apply(torch.clone)  # what Module.to and Module.cpu do; FSDP follows
    for tensor, parameter in zip(old, model.parameters(), strict=True):
        assert tensor.data_ptr() != local(parameter.detach()).data_ptr()


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
