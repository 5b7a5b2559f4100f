"""Routing replay: record which experts the router chose, or make it choose given ones.

R3 replays what the rollout chose; R2 records in one training pass and replays in the next. The
selection is replayed, the scores stay the live router's, so its gradient is kept.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from foremoe.errors import InvalidInputError
from foremoe.routing.mismatch import RoutingMismatch
from foremoe.routing.placement import SequenceRows

Scores = Callable[[Tensor], Tensor]

# In the place of an expert id to replay: the pair goes to no expert (padding), or the token is
# routed by the live router (nobody recorded it).
NO_EXPERT = -1
LIVE = -2


class RoutingObserver(Protocol):
    """Told what every router did: router losses, bias balancing."""

    def observe(
        self, layer: int, logits: Tensor, probabilities: Tensor, expert_ids: Tensor
    ) -> None: ...


class RoutingReplay:
    """Sits behind the routers of a model's MoE layers, given by global layer id.

    Outside of ``record`` and ``replay`` routing is untouched. mismatch, if set, compares what is
    replayed with what the live routers would have chosen. observers: told of every routing that is
    used, by the adapter that owns the routers.
    """

    def __init__(self, layers: tuple[int, ...], top_k: int) -> None:
        self.layers = layers
        self.top_k = top_k
        self.mismatch: RoutingMismatch | None = None
        self.observers: list[RoutingObserver] = []
        self._position = {layer: i for i, layer in enumerate(layers)}
        self._given: Tensor | None = None
        self._sequences: Mapping[str, Tensor] | None = None
        self._rows: SequenceRows | None = None
        self._valid: Tensor | None = None
        self._recorded: list[Tensor | None] | None = None

    @contextmanager
    def record(self, valid: Tensor | None = None) -> Iterator[Callable[[], Tensor]]:
        """Record the routing of the forward pass inside the block.

        valid: bool ``[tokens]``; tokens that are not (padding) get expert -1, are sent to no expert
        and contribute nothing. Yields a function that returns int16 ``[tokens, L, K]`` afterwards.
        """
        recorded = self._recorded = [None] * len(self.layers)
        self._valid = valid
        try:
            yield lambda: self._stack(recorded)
        finally:
            self._recorded, self._valid = None, None

    @contextmanager
    def replay(
        self, expert_ids: Tensor, sequences: Mapping[str, Tensor] | None = None
    ) -> Iterator[None]:
        """Route the forward pass by ``expert_ids [tokens, L, K]``, NO_EXPERT and LIVE included.

        sequences: int64 positions of each one's tokens, in order; ``mismatch`` judges them apart.
        Raises InvalidInputError for another shape.
        """
        if expert_ids.ndim != 3 or expert_ids.shape[1:] != (len(self.layers), self.top_k):
            raise InvalidInputError(
                f"replay: expected expert ids [tokens, {len(self.layers)}, {self.top_k}], "
                f"got {list(expert_ids.shape)}"
            )
        self._given, self._sequences = expert_ids.long(), sequences
        try:
            yield
        finally:
            self._given = self._sequences = self._rows = None

    def route(
        self, layer: int, chosen: Tensor, weights: Tensor, scores: Scores
    ) -> tuple[Tensor, Tensor]:
        """The experts and weights to use in place of the router's own ``chosen, weights [T, K]``.

        scores: live weights ``[T, K]`` of given experts (all valid ids).
        """
        position = self._position[layer]
        if self._given is not None:
            return self._replayed(layer, chosen, scores)
        if self._recorded is not None:
            if self._valid is not None:
                left_out = ~self._valid.to(chosen.device).unsqueeze(-1)
                chosen = chosen.masked_fill(left_out, NO_EXPERT)
                weights = weights.masked_fill(left_out, 0.0)
            self._recorded[position] = chosen.to(torch.int16)
        return chosen, weights

    def _replayed(self, layer: int, chosen: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
        assert self._given is not None
        if len(self._given) != len(chosen):
            raise InvalidInputError(
                f"replay: layer {layer} routes {len(chosen)} tokens, "
                f"but {len(self._given)} tokens of routing were given"
            )
        self._given = self._given.to(chosen.device)
        if self.mismatch is not None:
            self.mismatch.compare(layer, chosen, self._given, self._rows_on(chosen.device))
        given = self._given[:, self._position[layer]]
        given = torch.where(given == LIVE, chosen, given)
        left_out = given < 0
        # Experts that the router likes: the weights of others may be 0 / 0, whose gradient is no
        # number even where it counts for nothing.
        weights = scores(torch.where(left_out, chosen, given))
        return given, weights.masked_fill(left_out, 0.0)

    def _rows_on(self, device: torch.device) -> SequenceRows | None:
        """Made for the first layer, and anew where one is on another device."""
        if self._sequences is None:
            return None
        if self._rows is None or self._rows.rows.device != device:
            self._rows = SequenceRows(self._sequences, device)
        return self._rows

    def _stack(self, recorded: list[Tensor | None]) -> Tensor:
        missing = [layer for layer, ids in zip(self.layers, recorded, strict=True) if ids is None]
        if missing:
            raise InvalidInputError(f"replay: no forward pass reached the routers of {missing}")
        return torch.stack([ids for ids in recorded if ids is not None], dim=1)
