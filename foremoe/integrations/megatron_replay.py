"""Routing replay at Megatron-Core's own seam: what its routers ask in place of top-k."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from foremoe.routing.replay import RoutingReplay

TopK = Callable[..., tuple[Tensor, Tensor]]


class ReplayBehindRouter:
    """Takes the place of a router's ``RouterReplay``, which still records and replays if told to.

    Megatron's dispatchers want top-k experts of every token: padding is routed live, not left out.
    """

    def __init__(self, layer: int, replay: RoutingReplay, own: Any) -> None:
        self._layer = layer
        self._replay = replay
        self._own = own

    @classmethod
    def put(cls, layer: int, router: Any, replay: RoutingReplay) -> Callable[[], None]:
        """Put one behind ``router``; the result takes it away."""
        own = router.router_replay
        router.router_replay = cls(layer, replay, own)

        def take_away() -> None:
            router.router_replay = own

        return take_away

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None,
        group_topk: int | None,
        default_compute_topk: TopK,
    ) -> tuple[Tensor, Tensor]:
        """Scores and experts ``[T, K]`` of tokens whose scores are ``[T, E]``."""
        if self._own is not None and self._own.router_replay_action is not None:
            values, chosen = self._own.get_replay_topk(
                scores, topk, num_groups, group_topk, default_compute_topk
            )
            return values, chosen
        _, chosen = default_compute_topk(scores, topk, num_groups, group_topk)
        used, _ = self._replay.route(
            self._layer, chosen, scores.gather(1, chosen), lambda ids: scores.gather(1, ids)
        )
        used = used.where(used >= 0, chosen)
        return scores.gather(1, used), used
