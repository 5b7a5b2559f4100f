"""Megatron-Core 0.16: ForeMoE under its MoE layers, which keep router, dispatcher and experts.

    attached = foremoe.attach(model, AttachOptions(address="unix:/run/foremoe/foremoe.sock"))

Each rank's spare slots count as experts of the dispatcher: between routing and dispatch the routing
map ``[T, E]`` of logical experts becomes one of slots ``[T, P * (E / P + R)]``. The router, its
losses and biases, and the experts' parameters know nothing of it. docs/integrations.md says which
configurations were tested.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from foremoe.errors import InvalidInputError
from foremoe.integrations.attached import Attached
from foremoe.integrations.megatron_replay import ReplayBehindRouter
from foremoe.integrations.versions import supported
from foremoe.routing.replay import RoutingReplay
from foremoe.training.attachment import AttachOptions, open_session
from foremoe.training.expert_parallel import LayerWork, when_backward_ends
from foremoe.training.home_experts import HomeExperts
from foremoe.training.replica import differentiate_replica
from foremoe.training.session import RankSession
from foremoe.training.split_table import Slots

with supported("megatron-core"):
    from megatron.core.transformer.moe.experts import SequentialMLP
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.moe.token_dispatcher import (
        MoEAllGatherTokenDispatcher,
        MoEAlltoAllTokenDispatcher,
    )

_REFUSED = {
    "moe_router_fusion": "it skips routing replay",
    "gradient_accumulation_fusion": "replicas have no main_grad",
    "moe_shared_expert_overlap": "its streams are not tested",
    "moe_latent_size": "it needs Transformer Engine",
    "moe_expert_capacity_factor": "tokens must not be dropped",
    "fp8": "slots hold the experts' own type",
    "fp4": "slots hold the experts' own type",
}


def attach(
    model: nn.Module, options: AttachOptions, optimizers: Sequence[Optimizer] = ()
) -> Attached:
    """Join this rank's MoE layers to the runtime and put a RoutingReplay behind their routers.

    model: a Megatron model, wrapped in its DistributedDataParallel or not. optimizers: as
    ``open_session`` takes them. Raises InvalidInputError for what is not supported.
    """
    layers = {int(m.layer_number) - 1: m for m in model.modules() if isinstance(m, MoELayer)}
    if not layers:
        raise InvalidInputError("foremoe: this rank's part of the model has no MoE layers")
    first = layers[min(layers)]
    _check(first, model)
    homes = [_home_experts(layer, layers[layer]) for layer in sorted(layers)]
    session = open_session(homes, first.ep_group, options, optimizers)
    replay = RoutingReplay(tuple(sorted(layers)), int(first.config.moe_router_topk))
    joined = [_JoinedLayer(layer, layers[layer], session) for layer in sorted(layers)]
    undo: list[Callable[[], None]] = [one.leave for one in joined]
    undo += [ReplayBehindRouter.put(layer, layers[layer].router, replay) for layer in layers]
    return Attached(session, replay, undo)


class _JoinedLayer:
    """One MoE layer whose dispatcher sends tokens to slots."""

    def __init__(self, layer: int, module: Any, session: RankSession) -> None:
        self._layer = layer
        self._module = module
        self._session = session
        self._work: LayerWork | None = None
        self._own = {
            "forward": module.forward,
            "preprocess": module.preprocess,
            "dispatcher": module.token_dispatcher,
            "experts": module.experts.forward,
        }
        module.token_dispatcher = _slot_dispatcher(module, session.layout.slots)
        module.forward, module.preprocess = self._forward, self._preprocess
        module.experts.forward = self._experts

    def leave(self) -> None:
        """The layer as it was."""
        del self._module.forward, self._module.preprocess, self._module.experts.forward
        self._module.token_dispatcher = self._own["dispatcher"]

    def _forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        work = self._work = self._session.layer_work(self._layer)
        hidden_states = when_backward_ends(hidden_states, work.backward_done)
        output = self._own["forward"](hidden_states, *args, **options)
        work.forward_done()
        return output

    def _preprocess(self, hidden_states: Tensor, probs: Tensor, routing_map: Tensor) -> Any:
        assert self._work is not None
        slots, pairs = self._work.slots, routing_map.nonzero()
        pair, code = self._work.table.destinations(pairs[:, 1])
        token, expert = pairs[pair].unbind(dim=1)
        shape = (len(routing_map), slots.ranks * slots.per_rank)
        slot_map = routing_map.new_zeros(shape).index_put((token, code), routing_map.new_ones(()))
        slot_probs = probs.new_zeros(shape).index_put((token, code), probs[token, expert])
        return self._own["preprocess"](hidden_states, slot_probs, slot_map)

    def _experts(self, rows: Tensor, per_slot: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """``rows [N, H]`` and ``probs [N]``, slot by slot, ``per_slot`` of each."""
        assert self._work is not None
        work, owned = self._work, self._work.slots.experts_per_rank
        work.computed(len(rows))
        counts: list[int] = per_slot.tolist()
        sizes = [sum(counts[:owned]), *counts[owned:]]
        at_home, *replicas = zip(rows.split(sizes), probs.split(sizes), strict=True)
        output, bias = self._own["experts"](at_home[0], per_slot[:owned], at_home[1])
        assert bias is None, "SequentialMLP adds biases itself"
        outputs = [output]
        work.acquire()
        for slot, (part, weights) in enumerate(replicas):
            if len(part):
                outputs.append(
                    differentiate_replica(self._expert, slot, work.acquire, part, weights)
                )
        return torch.cat(outputs), None

    def _expert(self, weights: Mapping[str, Tensor], rows: Tensor, probs: Tensor) -> Tensor:
        """What the layer's own experts compute, with other weights."""
        expert = self._module.experts.local_experts[0]
        output, bias = functional_call(expert, dict(weights), (rows, probs))
        # A single expert leaves its bias to the layer, many add it.
        assert bias is None
        return output  # type: ignore[no-any-return]


def _slot_dispatcher(module: Any, slots: Slots) -> Any:
    """The layer's kind of dispatcher, for slots in place of experts."""
    config = copy.copy(module.config)
    config.num_moe_experts = slots.ranks * slots.per_rank
    first = module.ep_group.rank() * slots.per_rank
    own = module.token_dispatcher
    groups = _Groups(ep=own.ep_group, expt_tp=own.tp_group, tp_ep=own.tp_ep_group)
    return type(own)(
        slots.per_rank, list(range(first, first + slots.per_rank)), config, pg_collection=groups
    )


class _Groups:
    """The process groups that a dispatcher takes."""

    def __init__(self, ep: Any, expt_tp: Any, tp_ep: Any) -> None:
        self.ep, self.expt_tp, self.tp_ep = ep, expt_tp, tp_ep


def _home_experts(layer: int, module: Any) -> HomeExperts:
    experts = module.experts.local_experts
    names = [name for name, _ in experts[0].named_parameters()]
    parameters = {name: [one.get_parameter(name) for one in experts] for name in names}
    return HomeExperts(layer, parameters, tuple(module.local_expert_indices), module=module)


def _check(layer: Any, model: nn.Module) -> None:
    """Raise InvalidInputError for what would be wrong or was never run."""
    config = layer.config
    for option, why in _REFUSED.items():
        if getattr(config, option, None):
            raise InvalidInputError(f"foremoe: {option} is not supported, {why}; turn it off")
    if config.pipeline_model_parallel_size > 1:
        raise InvalidInputError(
            "foremoe: pipeline parallelism is not supported, its micro-batches overlap; "
            "set pipeline_model_parallel_size = 1"
        )
    if config.cuda_graph_impl != "none":
        raise InvalidInputError("foremoe: CUDA graphs are not supported; set cuda_graph_impl none")
    if layer.token_dispatcher.tp_size > 1:
        raise InvalidInputError(
            "foremoe: experts divided by tensor parallelism are not supported; "
            "set expert_tensor_parallel_size = 1"
        )
    dispatcher, experts = type(layer.token_dispatcher), type(layer.experts)
    if dispatcher not in (MoEAllGatherTokenDispatcher, MoEAlltoAllTokenDispatcher):
        raise InvalidInputError(
            f"foremoe: {dispatcher.__name__} is not supported; "
            "set moe_token_dispatcher_type to alltoall or allgather"
        )
    if experts is not SequentialMLP:
        raise InvalidInputError(
            f"foremoe: {experts.__name__} is not supported, it was never run here without a GPU; "
            "use SequentialMLP (moe_grouped_gemm off)"
        )
    if getattr(getattr(model, "ddp_config", None), "overlap_grad_reduce", False):
        raise InvalidInputError(
            "foremoe: overlap_grad_reduce is not supported, it sends an expert's gradient "
            "before its replicas' are home; turn it off"
        )
