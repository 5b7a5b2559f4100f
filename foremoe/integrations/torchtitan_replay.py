"""Routing replay behind torchtitan's routers, whose scores follow from their attributes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from foremoe.errors import InvalidInputError
from foremoe.routing.replay import RoutingReplay


class ReplayBehindRouter:
    """Hooks of one router and its gate.

    torchtitan's layers want top-k experts of every token: padding goes where the live router sends
    it, with weight 0.
    """

    def __init__(self, layer: int, router: Any, replay: RoutingReplay) -> None:
        self._layer = layer
        self._router = router
        self._replay = replay
        self._logits: Tensor | None = None

    @classmethod
    def put(cls, layer: int, module: Any, replay: RoutingReplay) -> list[Callable[[], None]]:
        """Put one behind the router of a ``MoE``; the results take it away."""
        own = cls(layer, module.router, replay)
        gate = module.router.gate.register_forward_hook(own._gated)
        return [gate.remove, module.router.register_forward_hook(own._routed).remove]

    def _gated(self, gate: Any, args: Any, logits: Tensor) -> None:
        del gate, args
        self._logits = logits

    def _routed(
        self, router: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``topk_scores [B, L, K], topk_expert_ids [B, L, K], scores [B, L, E]``, replayed."""
        del router, args
        weights, chosen, scores = output
        if isinstance(scores, DTensor):
            raise InvalidInputError(
                f"foremoe: the router of layer {self._layer} computes with DTensors, which is not "
                "supported; set spmd_backend = spmd_types"
            )
        by_token = scores.flatten(0, 1)
        live = chosen.flatten(0, 1)

        def weigh(expert_ids: Tensor) -> Tensor:
            values = by_token.gather(-1, expert_ids)
            if self._router.route_norm:
                values = values / (values.sum(dim=-1, keepdim=True) + 1e-20)
            return values * float(self._router.route_scale)

        used, used_weights = self._replay.route(self._layer, live, weights.flatten(0, 1), weigh)
        self._tell_observers(by_token, used)
        used = used.where(used >= 0, live)
        return used_weights.view_as(weights), used.view_as(chosen), scores

    def _tell_observers(self, scores: Tensor, used: Tensor) -> None:
        logits, self._logits = self._logits, None
        assert logits is not None
        if self._router.score_func == "sigmoid":
            scores = scores / scores.sum(dim=-1, keepdim=True)
        for observer in self._replay.observers:
            observer.observe(self._layer, logits.flatten(0, 1), scores, used)
