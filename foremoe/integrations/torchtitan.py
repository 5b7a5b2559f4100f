"""torchtitan 0.3: ForeMoE as an override of its all-to-all token dispatcher.

    --override.imports foremoe.integrations.torchtitan.dispatcher

    attached = foremoe.attach(model, AttachOptions(address="unix:/run/foremoe/foremoe.sock"))

Each rank's spare slots count as experts of the dispatcher. The rows of a rank's own experts go to
torchtitan's ``GroupedExperts``, those of replicas through the same module with other weights. The
router, its bias and counts and the experts' parameters know nothing of it. docs/integrations.md
says which configurations were tested.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.optim import Optimizer

from foremoe.errors import InvalidInputError
from foremoe.integrations.attached import Attached
from foremoe.integrations.torchtitan_replay import ReplayBehindRouter
from foremoe.integrations.versions import supported
from foremoe.routing.replay import RoutingReplay
from foremoe.training.attachment import AttachOptions, open_session
from foremoe.training.expert_parallel import LayerWork, when_backward_ends
from foremoe.training.home_experts import HomeExperts, local_part
from foremoe.training.replica import differentiate_replica
from foremoe.training.session import RankSession

with supported("torchtitan"):
    from torchtitan.config import derive, override
    from torchtitan.distributed.spmd_types import maybe_set_sparse_mesh
    from torchtitan.models.common.moe import MoE
    from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher

OVERRIDE = "foremoe.integrations.torchtitan.dispatcher"


class ForemoeTokenDispatcher(AllToAllTokenDispatcher):  # type: ignore[misc]
    """torchtitan's own until attached; then it sends tokens to slots in place of experts."""

    @dataclass(kw_only=True, slots=True)
    class Config(AllToAllTokenDispatcher.Config):  # type: ignore[misc]
        """torchtitan's, field by field."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layer = -1
        self.session: RankSession | None = None
        self._experts: Any = None

    def join(self, layer: int, experts: nn.Module, session: RankSession) -> None:
        """From now on compute with the session's replicas of ``experts``."""
        self.layer, self._experts, self.session = layer, experts, session

    def leave(self) -> None:
        """Back to torchtitan's."""
        self._experts, self.session = None, None

    def dispatch(
        self,
        x_TD: Tensor,
        topk_scores_TK: Tensor,
        topk_expert_ids_TK: Tensor,
        num_local_tokens_per_expert_E: Tensor,
    ) -> tuple[Tensor, Tensor, Any]:
        """As torchtitan's; rows and counts are those of this rank's own experts."""
        if self.session is None:
            return super().dispatch(  # type: ignore[no-any-return]
                x_TD, topk_scores_TK, topk_expert_ids_TK, num_local_tokens_per_expert_E
            )
        work = self.session.layer_work(self.layer)
        pair, code = work.table.destinations(topk_expert_ids_TK.reshape(-1))
        slot_ids = topk_expert_ids_TK.new_empty(topk_expert_ids_TK.numel())
        slot_ids[pair] = code
        rows, per_slot, metadata = super().dispatch(
            when_backward_ends(x_TD, work.backward_done),
            topk_scores_TK,
            slot_ids.view_as(topk_expert_ids_TK),
            torch.bincount(code, minlength=work.slots.ranks * work.slots.per_rank),
        )
        work.computed(len(rows))
        owned = work.slots.experts_per_rank
        counts: list[int] = per_slot.tolist()
        at_home, *replicas = rows.split([sum(counts[:owned]), *counts[owned:]])
        return at_home, per_slot[:owned], _Dispatched(metadata, work, replicas)

    def combine(
        self,
        routed_output_RD: Tensor,
        metadata: Any,
        x_TD: Tensor,
    ) -> Tensor:
        """Compute the replicas' rows, then as torchtitan's."""
        if not isinstance(metadata, _Dispatched):
            return super().combine(routed_output_RD, metadata, x_TD)  # type: ignore[no-any-return]
        outputs, acquire = [routed_output_RD], metadata.work.acquire
        acquire()
        for slot, rows in enumerate(metadata.replicas):
            if len(rows):
                outputs.append(differentiate_replica(self._expert, slot, acquire, rows))
        combined: Tensor = super().combine(torch.cat(outputs), metadata.own, x_TD)
        metadata.work.forward_done()
        return combined

    def _expert(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """What the layer's own experts compute, as a single one with other weights."""
        single = {name: weight.unsqueeze(0) for name, weight in weights.items()}
        count = torch.tensor([len(rows)], device=rows.device)
        with maybe_set_sparse_mesh():
            output: Tensor = functional_call(self._experts, single, (rows, count))
        return output


@dataclass(frozen=True, slots=True)
class _Dispatched:
    """own: what torchtitan's combine needs. replicas: rows ``[N, D]`` of each spare slot."""

    own: Any
    work: LayerWork
    replicas: Sequence[Tensor]


@override(  # type: ignore[untyped-decorator]
    target=AllToAllTokenDispatcher.Config,
    exact=True,
    description="ForeMoE: tokens go to replicas of experts too.",
)
def dispatcher(config: Any) -> Any:
    """What ``override.imports`` names."""
    return derive(config, ForemoeTokenDispatcher.Config)


def attach(
    model: nn.Module, options: AttachOptions, optimizers: Sequence[Optimizer] = ()
) -> Attached:
    """Join this rank's MoE layers to the runtime and put a RoutingReplay behind their routers.

    model: parallelized by torchtitan, its dispatchers overridden. optimizers: as ``open_session``
    takes them. Raises InvalidInputError for what is not supported.
    """
    layers = _moe_layers(model)
    for layer, module in layers.items():
        _check(layer, module)
    _check_model(model)
    first = layers[min(layers)]
    homes = [_home_experts(layer, module, model) for layer, module in layers.items()]
    group = first.routed_experts.token_dispatcher.ep_mesh.get_group()
    session = open_session(homes, group, options, optimizers)
    replay = RoutingReplay(tuple(layers), int(first.router.top_k))
    undo: list[Callable[[], None]] = []
    for layer, module in layers.items():
        routed = module.routed_experts
        routed.token_dispatcher.join(layer, routed.inner_experts, session)
        undo += [routed.token_dispatcher.leave, *ReplayBehindRouter.put(layer, module, replay)]
    return Attached(session, replay, undo)


def _moe_layers(model: nn.Module) -> dict[int, Any]:
    """The decoder's MoE layers, ascending by their global id."""
    found: dict[int, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            place = name.split(".")
            if place[0] != "layers" or not place[1].isdigit():
                raise InvalidInputError(f"foremoe: cannot tell the decoder layer of module {name}")
            found[int(place[1])] = module
    return dict(sorted(found.items()))


def _home_experts(layer: int, module: Any, model: nn.Module) -> HomeExperts:
    # torchtitan turns off FSDP's division of gradients, so they need no scale.
    routed = module.routed_experts
    parameters = dict(routed.inner_experts.named_parameters(recurse=False))
    owned = module.router.num_experts // routed.token_dispatcher.ep_mesh.size()
    start = routed.token_dispatcher.ep_mesh.get_local_rank() * owned
    return HomeExperts(layer, parameters, tuple(range(start, start + owned)), module=model)


def _check(layer: int, module: Any) -> None:
    """Raise InvalidInputError for what would be wrong or was never run."""
    used = module.routed_experts.token_dispatcher
    if not isinstance(used, ForemoeTokenDispatcher):
        raise InvalidInputError(
            f"foremoe: layer {layer} dispatches with {type(used).__name__}; "
            f"use moe_comm_backend standard and add {OVERRIDE} to override.imports"
        )
    if used.session is not None:
        raise InvalidInputError("foremoe: this model is attached already; detach it first")
    if used.ep_mesh is None:
        raise InvalidInputError(
            "foremoe: the experts are not divided over ranks; parallelize the model with "
            "expert_parallel_degree above 1 before attaching"
        )
    ranks = used.ep_mesh.size()
    for name, parameter in module.routed_experts.inner_experts.named_parameters(recurse=False):
        divided = parameter.device_mesh.size() if isinstance(parameter, DTensor) else ranks
        rows = len(local_part(parameter))
        if divided != ranks or rows * ranks != module.router.num_experts:
            raise InvalidInputError(
                f"foremoe: {name} of layer {layer} is divided or copied beyond expert "
                "parallelism, which is not supported; set expert_parallel_degree = "
                "data_parallel_shard_degree * context_parallel_degree * tensor_parallel_degree "
                "and data_parallel_replicate_degree = 1"
            )


def _check_model(model: nn.Module) -> None:
    if any(getattr(model, part, model) is None for part in ("tok_embeddings", "lm_head")):
        raise InvalidInputError(
            "foremoe: pipeline parallelism is not supported, its micro-batches overlap; "
            "set pipeline_parallel_degree = 1"
        )
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise InvalidInputError(
            "foremoe: a compiled model is not supported; leave model out of compile.components"
        )
