"""Ranks that train a tiny Qwen3-MoE through Transformers' own expert-parallel loading."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.distributed import DistributedConfig
from transformers.utils.logging import disable_progress_bar

from foremoe.errors import InvalidInputError
from foremoe.integrations.transformers import NAME, attach, hook_routers, register
from foremoe.training.attachment import AttachOptions
from foremoe.training.home_experts import local_part
from foremoe.vocabulary import Stage
from tests.training.dense import Case
from tests.training.workers import STEP, RandomPlans

VOCABULARY, SEQUENCES, LENGTH = 40, 3, 9


def case_for(ranks: int) -> Case:
    """One mini-batch; layer 0 of the model is dense."""
    return Case(seed=31, ranks=ranks, layers=2, mini_batches=1, micro_steps=2, layer_ids=(1, 2))


def write_model(folder: Path) -> None:
    """A random model, saved for all ranks."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=3,
        mlp_only_layers=[0],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)


def tokens(rank: int, micro_step: int) -> Tensor:
    """The rank's batch: int64 ``[SEQUENCES, LENGTH]``."""
    generator = torch.Generator().manual_seed(100 * rank + micro_step)
    return torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)


def routing(case: Case, rank: int, micro_step: int) -> Tensor:
    """What is replayed: int64 ``[tokens, L, K]``."""
    many = Case(case.seed, case.ranks, layers=2, tokens=SEQUENCES * LENGTH + 5)
    ids = many.routing(0, 10 * micro_step + rank)[: SEQUENCES * LENGTH]
    return torch.from_numpy(np.ascontiguousarray(ids))


def train_stock(folder: Path, ranks: int) -> tuple[list[float], dict[str, Tensor]]:
    """The unmodified model in one process: losses of every batch, gradients of their mean."""
    model: nn.Module = Qwen3MoeForCausalLM.from_pretrained(folder)
    case = case_for(ranks)
    replay = hook_routers(model, case.layer_ids)
    losses = []
    for micro_step in range(case.total):
        for rank in range(ranks):
            batch = tokens(rank, micro_step)
            with replay.replay(routing(case, rank, micro_step)):
                loss = model(batch, labels=batch).loss
            (loss / ranks).backward()
            losses.append(float(loss.item()))
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def train(rank: int, folder: Path, ranks: int, dtype: str) -> dict[str, Any]:
    """Balanced and at home: losses and this rank's part of every gradient."""
    disable_progress_bar()
    register()
    model = load(folder, ranks, dtype)
    case = case_for(ranks)
    session, replay = attach(model, AttachOptions(address=None, spare_slots=case.spare_slots))
    result: dict[str, Any] = {}
    for balanced in (False, True):
        session._client = RandomPlans(case, rank) if balanced else None
        losses = []
        with session.stage(STEP, Stage.UPDATE, balanced=balanced) as run:
            for micro_step in range(case.total):
                batch = tokens(rank, micro_step)
                with (
                    session.micro_step(micro_step),
                    replay.replay(routing(case, rank, micro_step)),
                ):
                    loss = model(batch, labels=batch).loss
                    loss.backward()
                losses.append(float(loss.item()))
        assert all(record.balanced == balanced for record in run.records)
        result["balanced" if balanced else "at home"] = losses, _take_gradients(model)
    session.close()
    return result


def train_moving(rank: int, folder: Path, ranks: int) -> list[dict[str, Any]]:
    """AdamW in float64 with a forward before every step; experts stay, then move in between.

    Losses, the full state dict and this rank's optimizer state at the end of both.
    """
    disable_progress_bar()
    register()
    return [_train_moving(rank, folder, ranks, moving) for moving in (False, True)]


def _train_moving(rank: int, folder: Path, ranks: int, moving: bool) -> dict[str, Any]:
    model = load(folder, ranks, "float64")
    for module in model.modules():
        if isinstance(module, FSDPModule):  # whole parameters outlive a forward without backward
            module.set_reshard_after_forward(False)
    case = case_for(ranks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    options = AttachOptions(address=None, spare_slots=case.spare_slots)
    session, replay = attach(model, options, [optimizer] if moving else [])
    plans = session._client = RandomPlans(case, rank)
    losses = []
    for step in range(3):
        with torch.no_grad(), replay.replay(routing(case, rank, 0)):
            losses.append(float(model(tokens(rank, 9), labels=tokens(rank, 9)).loss.item()))
        if moving:
            generator = np.random.default_rng(step)
            assert session.move_homes(generator.permuted(plans.home, axis=1)) > 0
        with session.stage(STEP, Stage.UPDATE) as run:
            for micro_step in range(case.total):
                batch = tokens(rank, micro_step)
                with (
                    session.micro_step(micro_step),
                    replay.replay(routing(case, rank, micro_step)),
                ):
                    loss = model(batch, labels=batch).loss
                    loss.backward()
                losses.append(float(loss.item()))
        assert all(record.balanced for record in run.records)
        optimizer.step()
        optimizer.zero_grad()
        session.weights_changed()
    if moving:
        with pytest.raises(InvalidInputError, match="homes_as_attached"):
            model.state_dict()
    with session.homes_as_attached():
        weights = {name: t.full_tensor().clone() for name, t in model.state_dict().items()}
        state = optimizer.state_dict()["state"]
        moments = [local_part(own["exp_avg_sq"]).clone() for own in state.values()]
    session.close()
    return {"losses": losses, "weights": weights, "moments": moments}


def load(folder: Path, ranks: int, dtype: str) -> nn.Module:
    model: nn.Module = Qwen3MoeForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        distributed_config=DistributedConfig(
            tp_size=1, fsdp_size=ranks, ep_size=ranks, ep_implementation=NAME
        ),
    )
    return model


def _take_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Whole dense gradients, this rank's expert gradients; the model's are cleared."""
    taken = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert isinstance(gradient, DTensor)
        experts = ".experts." in name
        taken[name] = (gradient.to_local() if experts else gradient.full_tensor()).clone()
        parameter.grad = None
    dist.barrier()
    return taken
