"""Ranks that run a stack of Megatron-Core's own MoE layers, on ForeMoE and without."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import foremoe
from foremoe.errors import InvalidInputError
from foremoe.integrations.attached import Attached
from foremoe.training.attachment import AttachOptions
from foremoe.vocabulary import Stage
from tests.integrations import megatron_cpu
from tests.training.dense import Case
from tests.training.workers import STEP, RandomPlans

HIDDEN, TOKENS = 16, 24


def case_for(ranks: int) -> Case:
    """Layers 1 and 4; as many tokens on every rank, as the allgather dispatcher needs."""
    return Case(seed=5, ranks=ranks, layers=2, mini_batches=1, layer_ids=(1, 4))


class Stack(nn.Module):
    """MoE layers with residuals; ``config`` is what Megatron's DDP asks for."""

    def __init__(self, case: Case, **options: Any) -> None:
        from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
        from megatron.core.transformer.mlp import MLPSubmodules
        from megatron.core.transformer.moe.experts import SequentialMLP
        from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
        from megatron.core.transformer.spec_utils import ModuleSpec
        from megatron.core.transformer.transformer_config import TransformerConfig

        super().__init__()
        settings: dict[str, Any] = {
            "num_layers": 5,
            "hidden_size": HIDDEN,
            "num_attention_heads": 2,
            "num_moe_experts": case.experts,
            "moe_router_topk": case.top_k,
            "ffn_hidden_size": 32,
            "moe_ffn_hidden_size": 24,
            "add_bias_linear": False,
            "gated_linear_unit": True,
            "activation_func": torch.nn.functional.silu,
            "bias_activation_fusion": False,
            "expert_model_parallel_size": case.ranks,
            "moe_router_load_balancing_type": "none",
            "moe_enable_routing_replay": True,
            "gradient_accumulation_fusion": False,
            "use_cpu_initialization": True,
        }
        self.config = TransformerConfig(**settings | options)
        experts = ModuleSpec(
            module=SequentialMLP,
            submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
        )
        self.layers = nn.ModuleList(
            MoELayer(self.config, MoESubmodules(experts=experts), layer_number=layer + 1)
            for layer in case.layer_ids
        )
        for name, parameter in self.named_parameters():
            part = dist.get_rank() if "experts" in name else 0
            generator = torch.Generator().manual_seed(sum(map(ord, name)) + 1000 * part)
            parameter.data.normal_(std=0.2, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = hidden + layer(hidden)[0]
        return hidden


def on_two_ranks(rank: int) -> dict[str, Any]:
    """All that is tested there: processes are slow to start."""
    return {
        "alltoall": train(rank, 2, "alltoall", own_replay=True),
        "allgather": train(rank, 2, "allgather", own_replay=False),
        "replay": record_and_replay(rank, 2),
        "life": live_on(rank, 2),
        "refusals": refusals(rank, 2),
    }


def on_four_ranks(rank: int) -> dict[str, Any]:
    """Once with a balance loss and selection biases, whose counts are of logical experts."""
    health = {
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.1,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    }
    return {
        "alltoall": train(rank, 4, "alltoall", own_replay=False),
        "allgather": train(rank, 4, "allgather", own_replay=True, **health),
    }


def build(case: Case, **options: Any) -> tuple[Stack, Any]:
    """The stack and Megatron's DDP around it, which sums gradients into ``main_grad``."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.moe.router_replay import RouterReplay

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(expert_model_parallel_size=case.ranks)
        megatron_cpu.prepare()
    RouterReplay.clear_global_router_replay_instances()
    stack = Stack(case, **options)
    return stack, DistributedDataParallel(stack.config, DistributedDataParallelConfig(), stack)


def join(model: nn.Module, case: Case) -> Attached:
    """Attach, with random plans in place of a daemon's."""
    attached = foremoe.attach(model, AttachOptions(address=None, spare_slots=case.spare_slots))
    attached.session._client = RandomPlans(case, dist.get_rank())
    return attached


def tokens(rank: int, micro_step: int) -> Tensor:
    """``[S, B, H]``."""
    generator = torch.Generator().manual_seed(10 * rank + micro_step)
    return torch.randn(TOKENS // 2, 2, HIDDEN, generator=generator)


def routing(case: Case, rank: int, micro_step: int) -> Tensor:
    """What is replayed: int64 ``[TOKENS, L, K]``."""
    many = Case(case.seed, case.ranks, layers=2, tokens=TOKENS + 5)
    return torch.from_numpy(many.routing(0, 10 * micro_step + rank)[:TOKENS].copy())


def replay(case: Case, rank: int, micro_step: int, action: str) -> None:
    """Tell Megatron's own RouterReplay what to do."""
    from megatron.core.transformer.moe.router_replay import RouterReplay, RouterReplayAction

    ids = routing(case, rank, micro_step)
    if action == "REPLAY_FORWARD":
        RouterReplay.set_replay_data([ids[:, 0], ids[:, 1]])
    RouterReplay.set_global_router_replay_action(RouterReplayAction[action])


def forget_replay() -> None:
    from megatron.core.transformer.moe.router_replay import RouterReplay

    RouterReplay.clear_global_router_replay_action()
    RouterReplay.clear_global_indices()


Run = tuple[list[Tensor], dict[str, Tensor]]


def train(
    rank: int, ranks: int, dispatcher: str, own_replay: bool, **options: Any
) -> dict[str, Any]:
    """One mini-batch as Megatron alone runs it, attached at home, balanced, and detached again.

    own_replay: routing is replayed by Megatron's RouterReplay, else by ForeMoE's.
    """
    case = case_for(ranks)
    stack, model = build(case, moe_token_dispatcher_type=dispatcher, **options)
    checkpoint = _checkpoint(stack)
    results: dict[str, Any] = {"alone": _train_alone(model, case, rank)}
    attached = join(model, case)
    for name, balanced in (("at home", False), ("balanced", True)):
        results[name] = _train_attached(attached, model, case, rank, balanced, own_replay)
    now = _checkpoint(stack)
    results["same checkpoint"] = list(now) == list(checkpoint) and all(
        torch.equal(tensor, checkpoint[name]) for name, tensor in now.items()
    )
    attached.detach()
    results["detached"] = _train_alone(model, case, rank)
    return results


def _checkpoint(stack: Stack) -> dict[str, Tensor]:
    """What a plain and a sharded checkpoint hold of this rank."""
    held = {name: tensor for name, tensor in stack.state_dict().items() if tensor is not None}
    for layer in stack.layers:
        for name, shard in layer.sharded_state_dict(f"sharded.{layer.layer_number}.").items():
            if isinstance(getattr(shard, "data", None), Tensor):
                held[f"{name} {shard.key}"] = shard.data
    return {name: tensor.clone() for name, tensor in held.items()}


def _train_alone(model: Any, case: Case, rank: int) -> Run:
    model.zero_grad_buffer()
    outputs = []
    for micro_step in range(case.total):
        replay(case, rank, micro_step, "REPLAY_FORWARD")
        outputs.append(_step(model, rank, micro_step))
        forget_replay()
    return outputs, _gradients(model)


def _train_attached(
    attached: Attached, model: Any, case: Case, rank: int, balanced: bool, own_replay: bool
) -> Run:
    model.zero_grad_buffer()
    outputs = []
    with attached.session.stage(STEP, Stage.UPDATE, balanced=balanced) as run:
        for micro_step in range(case.total):
            with attached.session.micro_step(micro_step):
                if own_replay:
                    replay(case, rank, micro_step, "REPLAY_FORWARD")
                    outputs.append(_step(model, rank, micro_step))
                    forget_replay()
                else:
                    with attached.replay.replay(routing(case, rank, micro_step)):
                        outputs.append(_step(model, rank, micro_step))
    assert all(record.balanced == balanced for record in run.records)
    return outputs, _gradients(model)


def _step(model: Any, rank: int, micro_step: int) -> Tensor:
    hidden = tokens(rank, micro_step).requires_grad_()
    output: Tensor = model(hidden)
    (output * torch.arange(1, HIDDEN + 1)).sum().backward()
    assert hidden.grad is not None
    return torch.stack([output.detach(), hidden.grad])


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Also the tokens per expert that a selection bias would move by, which are cleared."""
    taken = {name: p.main_grad.clone() for name, p in model.named_parameters()}
    for name, buffer in model.named_buffers():
        if name.endswith("local_tokens_per_expert"):
            taken[name] = buffer.clone()
            buffer.zero_()
    return taken


def live_on(rank: int, ranks: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What an attached model goes through: each event, outputs after it and Megatron's alone."""
    case = case_for(ranks)
    stack, model = build(case, moe_token_dispatcher_type="alltoall")
    first = _weights(stack)
    before = torch.stack(_train_alone(model, case, rank)[0])
    _take_step(model, torch.optim.SGD(stack.parameters(), lr=0.01))
    after = torch.stack(_train_alone(model, case, rank)[0])
    _put(stack, first)

    attached = join(model, case)
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.01)
    attached.follow(optimizer)

    def seen() -> Tensor:
        return torch.stack(_train_attached(attached, model, case, rank, True, own_replay=True)[0])

    results = {"attached": (seen(), before)}
    _take_step(model, optimizer)
    results["stepped"] = (seen(), after)
    stepped = _weights(stack)
    _put(stack, first)
    attached.session.weights_changed()
    results["switched"] = (seen(), before)
    for parameter in stack.parameters():  # as sleep and wake-up: what still reads there reads zeros
        old, parameter.data = parameter.data, parameter.data.clone()
        old.zero_()
    _put(stack, stepped)
    attached.session.weights_changed()
    results["reloaded"] = (seen(), after)
    attached.detach()
    _put(stack, first)
    results["detached"] = (torch.stack(_train_alone(model, case, rank)[0]), before)
    return results


def _take_step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Megatron's synchronised gradients into a step."""
    model.finish_grad_sync()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = parameter.main_grad.clone()
    optimizer.step()
    optimizer.zero_grad()


def _weights(stack: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in stack.parameters()]


def _put(stack: nn.Module, weights: list[Tensor]) -> None:
    """Other weights into the same memory."""
    with torch.no_grad():
        for parameter, weight in zip(stack.parameters(), weights, strict=True):
            parameter.copy_(weight)


def record_and_replay(rank: int, ranks: int) -> dict[str, Any]:
    """RECORD, REPLAY_FORWARD of other experts and REPLAY_BACKWARD, in balanced micro-steps."""
    from megatron.core.transformer.moe.router_replay import RouterReplay

    case = case_for(ranks)
    stack, _ = build(case, moe_token_dispatcher_type="alltoall")
    attached = join(stack, case)
    results: dict[str, Any] = {}
    with torch.no_grad(), attached.session.stage(STEP, Stage.RECOMPUTE) as run:
        with attached.session.micro_step(0):
            replay(case, rank, 0, "RECORD")
            live = stack(tokens(rank, 0))
            recorded = [ids.clone() for ids in RouterReplay.get_recorded_data()]
        with attached.session.micro_step(1), attached.replay.record() as own:
            forget_replay()
            results["recorded as live"] = torch.equal(stack(tokens(rank, 0)), live)
        results["both record alike"] = torch.equal(own().long(), torch.stack(recorded, dim=1))
        with attached.session.micro_step(2):
            replay(case, rank, 0, "REPLAY_FORWARD")
            forward = stack(tokens(rank, 0))
            replay(case, rank, 0, "REPLAY_BACKWARD")
            results["backward as forward"] = torch.equal(stack(tokens(rank, 0)), forward)
        replays = RouterReplay.global_router_replay_instances
        results["left to replay"] = sum(len(one.replay_backward_list) for one in replays)
    forget_replay()
    results["replay differs from live"] = not torch.allclose(forward, live)
    assert all(record.balanced for record in run.records)
    attached.detach()
    return results


def refusals(rank: int, ranks: int) -> list[str]:
    """What attach says to options that it cannot take."""
    del rank
    messages = []
    for option, value in (
        ("moe_router_fusion", True),
        ("moe_expert_capacity_factor", 1.0),
        ("pipeline_model_parallel_size", 2),
    ):
        stack, _ = build(case_for(ranks))
        for layer in stack.layers:
            setattr(layer.config, option, value)
        with pytest.raises(InvalidInputError) as refused:
            join(stack, case_for(ranks))
        messages.append(str(refused.value))
    return messages
