"""Transformers 5: ForeMoE as a registered expert-parallel implementation.

    register()
    model = AutoModelForCausalLM.from_pretrained(
        path,
        distributed_config=DistributedConfig(
            tp_size=1, fsdp_size=ranks, ep_size=ranks, ep_implementation="foremoe"
        ),
    )
    session, replay = attach(model, AttachOptions(address="unix:/run/foremoe/foremoe.sock"))

The model's own code stays as it is: routers are hooked, the experts' forward is the registered
implementation. Tested with Qwen3-MoE on transformers 5.23.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers.distributed.expert_parallel import EPImplementation, EPImplementationInterface

from foremoe.errors import InvalidInputError
from foremoe.routing.replay import RoutingReplay
from foremoe.training.attachment import AttachOptions, open_session
from foremoe.training.expert_parallel import LayerWork, run_experts
from foremoe.training.home_experts import HomeExperts
from foremoe.training.session import RankSession
from foremoe.training.split_table import Slots, SplitTable, contiguous_home

NAME = "foremoe"
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_WEIGHTS = {"gate_up": "gate_up_proj", "down": "down_proj"}


class ForemoeExpertParallel(EPImplementation):  # type: ignore[misc]
    """Built by Transformers for each experts module; plain expert parallelism until attached."""

    def __init__(self, experts: nn.Module, ep_mesh: Any, tp_mesh: Any) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        if tp_mesh.size() != 1:
            raise InvalidInputError(
                "foremoe: tensor parallelism beside expert parallelism is not supported; "
                "use tp_size=1"
            )
        _check_experts(experts)
        self.experts = experts
        self.layer = -1
        self.session: RankSession | None = None
        slots = Slots(ep_mesh.size(), self.num_local_experts, 0)
        home = contiguous_home(slots.ranks * slots.experts_per_rank, slots.ranks)
        self._at_home = LayerWork.at_home(slots, SplitTable(slots, home))
        experts._foremoe = self

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        work = self._at_home if self.session is None else self.session.layer_work(self.layer)
        home = {name: getattr(self.experts, attr) for name, attr in _WEIGHTS.items()}
        group = self.ep_mesh.get_group()
        return run_experts(hidden_states, top_k_index, top_k_weights, home, work, group)


def register() -> None:
    """Make ``ep_implementation="foremoe"`` known to Transformers; calling it again is harmless."""
    EPImplementationInterface.register(NAME, ForemoeExpertParallel)


def attach(
    model: nn.Module, options: AttachOptions, optimizers: Sequence[Optimizer] = ()
) -> tuple[RankSession, RoutingReplay]:
    """Join this rank's model to the runtime and hook its routers for replay.

    The model was built with ``ep_implementation="foremoe"`` and ``ep_size`` equal to the number of
    ranks that hold different experts. Raises InvalidInputError when it was not. optimizers: as
    ``open_session`` takes them; with them experts may change homes between stages.
    """
    implementations = _implementations(model)
    first = next(iter(implementations.values()))
    config: Any = model.config
    distributed = config.distributed_config
    if distributed.dp_replicate_size != 1:
        raise InvalidInputError(
            "foremoe: experts replicated over data-parallel groups are not supported; "
            "set dp_replicate_size = 1"
        )
    if distributed.efsdp_size != 1:
        raise InvalidInputError(
            "foremoe: experts sharded by FSDP on top of expert parallelism are not supported; "
            "set ep_size = fsdp_size"
        )
    if distributed.fsdp_mixed_precision:
        raise InvalidInputError(
            "foremoe: fsdp_mixed_precision is not supported; load the model in its training dtype"
        )
    scale = _gradient_scale(first.experts.get_parameter("gate_up_proj"), distributed.dp_size)
    homes = []
    for layer, implementation in implementations.items():
        owned = first.num_local_experts
        start = implementation.ep_mesh.get_local_rank() * owned
        parameters = {
            name: implementation.experts.get_parameter(attr) for name, attr in _WEIGHTS.items()
        }
        experts = tuple(range(start, start + owned))
        homes.append(HomeExperts(layer, parameters, experts, scale, module=model))
    session = open_session(homes, first.ep_mesh.get_group(), options, optimizers)
    for layer, implementation in implementations.items():
        implementation.layer, implementation.session = layer, session
    return session, hook_routers(model, tuple(implementations))


def hook_routers(model: nn.Module, layers: tuple[int, ...]) -> RoutingReplay:
    """Put a RoutingReplay behind the routers of the given decoder layers."""
    config: Any = model.config
    replay = RoutingReplay(layers, int(config.num_experts_per_tok))
    for name, module in model.named_modules():
        match = _LAYER.search(name)
        if match and name.endswith(".mlp.gate") and int(match[1]) in layers:
            module.register_forward_hook(_router_hook(replay, int(match[1])))
    return replay


def _gradient_scale(parameter: nn.Parameter, batches: int) -> float:
    """What FSDP multiplies an expert's gradient by, found by sending a gradient of 1 through it.

    Meant is 1 / batches, but torch 2.13 divides twice in float64 and float16 when one rank holds
    the whole expert; the replicas' share of a gradient must be treated as the rest of it.
    """
    assert isinstance(parameter, DTensor), "FSDP holds its parameters as DTensors"
    like: Any = {"dtype": parameter.dtype, "device": parameter.device}
    linear = nn.Linear(1, 1, bias=False, **like)
    probe = fully_shard(linear, mesh=parameter.device_mesh["efsdp"])
    probe.set_gradient_divide_factor(float(batches))
    linear(torch.ones(1, 1, **like)).sum().backward()
    gradient = linear.weight.grad
    assert isinstance(gradient, DTensor)
    return float(gradient.to_local().item())


def _implementations(model: nn.Module) -> dict[int, ForemoeExpertParallel]:
    """This model's expert-parallel implementations by decoder layer, ascending."""
    found = {}
    for name, module in model.named_modules():
        implementation = getattr(module, "_foremoe", None)
        if implementation is not None:
            match = _LAYER.search(f"{name}.")
            if match is None:
                raise InvalidInputError(f"foremoe: cannot tell the decoder layer of module {name}")
            found[int(match[1])] = implementation
    if not found:
        raise InvalidInputError(
            "foremoe: the model has no experts to balance; call register() and load it with "
            f'DistributedConfig(fsdp_size=N, ep_size=N, ep_implementation="{NAME}")'
        )
    return dict(sorted(found.items()))


def _check_experts(experts: nn.Module) -> None:
    """Raise InvalidInputError unless these are fused silu-gated experts without biases."""
    shapes = {name: tuple(p.shape) for name, p in experts.named_parameters(recurse=False)}
    activation = type(getattr(experts, "act_fn", None)).__name__
    fused = set(shapes) == set(_WEIGHTS.values()) and all(len(s) == 3 for s in shapes.values())
    if not fused or not activation.startswith("SiLU"):
        raise InvalidInputError(
            f"foremoe: experts with parameters {shapes} and activation {activation} are not "
            "supported; they must be gate_up_proj [E, 2I, H] and down_proj [E, H, I] with SiLU"
        )


def _router_hook(replay: RoutingReplay, layer: int) -> Any:
    def hook(router: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        del args
        logits, weights, chosen = output

        def scores(expert_ids: Tensor) -> Tensor:
            wide = torch.promote_types(logits.dtype, torch.float32)
            probabilities = F.softmax(logits, dim=-1, dtype=wide)
            values = probabilities.gather(-1, expert_ids)
            if router.norm_topk_prob:
                values = values / values.sum(dim=-1, keepdim=True)
            return values.to(logits.dtype)

        chosen, weights = replay.route(layer, chosen, weights, scores)
        return logits, weights, chosen

    return hook
