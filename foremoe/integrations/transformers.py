"""Transformers 5: ForeMoE as a registered expert-parallel implementation and experts function.

    register()
    model = AutoModelForCausalLM.from_pretrained(
        path,
        distributed_config=DistributedConfig(
            tp_size=1, fsdp_size=ranks, ep_size=ranks, ep_implementation="foremoe"
        ),
    )
    attached = foremoe.attach(model, AttachOptions(address="unix:/run/foremoe/foremoe.sock"))

The model's own code stays as it is: routers are hooked, the experts' forward is the registered
implementation. docs/integrations.md lists the models tested.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from foremoe.errors import InvalidInputError
from foremoe.integrations.attached import Attached
from foremoe.integrations.transformers_experts import kind_of, whole_experts
from foremoe.integrations.transformers_routers import LAYER, hook_routers
from foremoe.integrations.versions import supported
from foremoe.training.attachment import AttachOptions, open_session
from foremoe.training.expert_parallel import LayerWork, run_experts
from foremoe.training.home_experts import HomeExperts
from foremoe.training.session import RankSession
from foremoe.training.split_table import Slots, SplitTable, contiguous_home

with supported("transformers"):
    from transformers.distributed.expert_parallel import (
        EPImplementation,
        EPImplementationInterface,
    )
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "foremoe"


class ForemoeExpertParallel(EPImplementation):  # type: ignore[misc]
    """Built by Transformers for each experts module; plain expert parallelism until attached."""

    def __init__(self, experts: nn.Module, ep_mesh: Any, tp_mesh: Any) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        if tp_mesh.size() != 1:
            raise InvalidInputError(
                "foremoe: tensor parallelism beside expert parallelism is not supported; "
                "use tp_size=1"
            )
        self.experts = experts
        self.kind = kind_of(experts)
        self.layer = -1
        self.session: RankSession | None = None
        slots = Slots(ep_mesh.size(), self.num_local_experts, 0)
        home = contiguous_home(slots.ranks * slots.experts_per_rank, slots.ranks)
        self._at_home = LayerWork.at_home(slots, SplitTable(slots, home))
        experts._foremoe = self

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        output = run_experts(
            hidden_states,
            top_k_index,
            top_k_weights,
            self.kind.tensors(self.experts),
            self._at_home if self.session is None else self.session.layer_work(self.layer),
            self.ep_mesh.get_group(),
            self.kind.function,
        )
        return output.clone()  # FSDP warns of modules that return views

    def home_experts(self, layer: int, scale: float, model: nn.Module) -> HomeExperts:
        """This rank's share of the model's experts, for ``open_session``."""
        owned = self.num_local_experts
        start = self.ep_mesh.get_local_rank() * owned
        parameters = {
            name: self.experts.get_parameter(attribute)
            for name, attribute in self.kind.parameters.items()
        }
        experts = tuple(range(start, start + owned))
        return HomeExperts(layer, parameters, experts, scale, module=model)

    def join(self, layer: int, session: RankSession) -> None:
        """From now on compute with the session's replicas."""
        self.layer, self.session = layer, session

    def leave(self) -> None:
        """Back to plain expert parallelism."""
        self.session = None


def register() -> None:
    """Make the name ``foremoe`` known to Transformers; calling it again is harmless.

    As ``ep_implementation`` it divides the experts; as ``experts_implementation`` of a model whose
    experts are not divided it computes them in the same way, and takes replayed padding.
    """
    EPImplementationInterface.register(NAME, ForemoeExpertParallel)
    ALL_EXPERTS_FUNCTIONS.register(NAME, whole_experts)


def attach(
    model: nn.Module, options: AttachOptions, optimizers: Sequence[Optimizer] = ()
) -> Attached:
    """Join this rank's model to the runtime and hook its routers for replay.

    The model was built with ``ep_implementation="foremoe"`` and ``ep_size`` equal to the number of
    ranks that hold different experts. Raises InvalidInputError when it was not, or is attached
    already. optimizers: as ``open_session`` takes them; with them experts may change homes between
    stages.
    """
    implementations = _implementations(model)
    first = next(iter(implementations.values()))
    if first.session is not None:
        raise InvalidInputError("foremoe: this model is attached already; detach it first")
    _check_distribution(model)
    config: Any = model.config
    parameter = first.experts.get_parameter("gate_up_proj")
    scale = _gradient_scale(parameter, config.distributed_config.dp_size)
    replay, hooks = hook_routers(model, implementations)
    homes = [one.home_experts(layer, scale, model) for layer, one in implementations.items()]
    undo = [hook.remove for hook in hooks]
    try:
        session = open_session(homes, first.ep_mesh.get_group(), options, optimizers)
    except BaseException:
        for remove in undo:
            remove()
        raise
    for layer, implementation in implementations.items():
        implementation.join(layer, session)
        undo.append(implementation.leave)
    return Attached(session, replay, undo)


def _check_distribution(model: nn.Module) -> None:
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
            match = LAYER.search(f"{name}.")
            if match is None:
                raise InvalidInputError(f"foremoe: cannot tell the decoder layer of module {name}")
            found[int(match[1])] = implementation
    if not found:
        raise InvalidInputError(
            "foremoe: the model has no experts to balance; call register() and load it with "
            f'DistributedConfig(fsdp_size=N, ep_size=N, ep_implementation="{NAME}")'
        )
    return dict(sorted(found.items()))
