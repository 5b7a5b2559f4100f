"""How far replayed routing is from what the live router would choose, and whether it is misplaced.

A rollout engine and a trainer disagree on some tokens (other kernels, older weights): that share is
worth watching. Routing that belongs to other tokens or other layers disagrees on nearly all of
them, yet nothing fails: shapes fit and every expert id is valid. Both show in the *agreement*: the
share of (token, expert) pairs that match, above the share that would by chance given how popular
each expert is, as in Cohen's kappa. 1.0 is the same routing, 0.0 is chance.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.errors import InvalidInputError
from foremoe.routing.balance_losses import count_experts

# Where the given routing may really belong: (rows, layers) away from where it was replayed.
_PLACES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
_SAMPLED_BLOCKS = 16
_ENOUGH_TOKENS = 64
_CLEARLY = 0.1


@dataclass(frozen=True, slots=True)
class LayerMismatch:
    """One layer's comparison; ``agreement`` is above chance, 1.0 the same routing."""

    layer: int
    tokens: int
    differing_tokens: int
    differing_pairs: int
    agreement: float

    @property
    def differing_share(self) -> float:
        """Share of tokens whose set of experts differs."""
        return self.differing_tokens / max(self.tokens, 1)


class RoutingMismatch:
    """Counts, over any number of forward passes, how replayed and live routing differ."""

    def __init__(self, layers: tuple[int, ...], num_experts: int) -> None:
        self.layers = layers
        self._position = {layer: i for i, layer in enumerate(layers)}
        # Per layer: tokens, differing tokens, matching pairs; per layer and place: sampled tokens,
        # matching pairs, and how often each expert was live and given.
        self._totals = torch.zeros(len(layers), 3, dtype=torch.int64)
        self._sampled = torch.zeros(len(layers), len(_PLACES), 2, dtype=torch.int64)
        self._popular = torch.zeros(len(layers), len(_PLACES), 2, num_experts, dtype=torch.int64)
        self._top_k = 1

    def compare(self, layer: int, live: Tensor, given: Tensor) -> None:
        """One forward pass of a layer.

        live: ``[T, K]`` the router's own choice. given: ``[T, L, K]`` what is replayed in all
        layers, negative where nothing is.
        """
        position = self._position[layer]
        self._top_k = live.shape[-1]
        if self._totals.device != live.device:
            counters = (self._totals, self._sampled, self._popular)
            self._totals, self._sampled, self._popular = (c.to(live.device) for c in counters)
        here = given[:, position]
        present = (here >= 0).all(dim=-1)
        matching = _matching(live, here)[present]
        differing = (matching < self._top_k).sum()
        self._totals[position] += torch.stack([present.sum(), differing, matching.sum()])
        for place, (rows, layers) in enumerate(_PLACES):
            if 0 <= position + layers < len(self.layers):
                there = given[:, position + layers]
                shifted = _shifted(live, there, rows)
                self._sample(position, place, *(_blocks(ids) for ids in shifted))

    def report(self) -> list[LayerMismatch]:
        """What was counted so far, by layer."""
        agreement = self._agreement()
        return [
            LayerMismatch(
                layer,
                tokens,
                differing,
                tokens * self._top_k - matching,
                float(agreement[position, 0]),
            )
            for position, (layer, (tokens, differing, matching)) in enumerate(
                zip(self.layers, self._totals.tolist(), strict=True)
            )
        ]

    def check(
        self, group: dist.ProcessGroup | None = None, least_agreement: float = 0.2
    ) -> list[LayerMismatch]:
        """This rank's report, or InvalidInputError when its routing seems to belong elsewhere.

        That is when a neighbouring row or layer agrees clearly better than its own place, or when
        agreement is below ``least_agreement``. Layers with fewer than 64 tokens are not judged.
        Collective over the group: when one rank's routing is refused, all ranks raise, or the
        others would wait for it in the next collective.
        """
        refusals = [self._refusal(least_agreement)]
        if group is not None:
            mine = f"rank {dist.get_rank(group)}: {refusals[0]}" if refusals[0] else ""
            refusals = [""] * group.size()
            dist.all_gather_object(refusals, mine, group=group)
        if any(refusals):
            raise InvalidInputError("replay: " + "; ".join(filter(None, refusals)))
        return self.report()

    def reset(self) -> None:
        """Forget what was counted."""
        for counter in (self._totals, self._sampled, self._popular):
            counter.zero_()

    def _refusal(self, least_agreement: float) -> str:
        """What is wrong with the routing; empty when nothing is."""
        agreement = self._agreement()
        judged = (self._sampled[:, 0, 0] >= _ENOUGH_TOKENS).nonzero()[:, 0].tolist()
        for position in judged:
            own, best = float(agreement[position, 0]), int(agreement[position].argmax())
            if agreement[position, best] > max(own + _CLEARLY, least_agreement):
                return (
                    f"the routing of layer {self.layers[position]} is misplaced, "
                    f"{_describe(_PLACES[best])} fits the live router better (agreement "
                    f"{float(agreement[position, best]):.2f}, own place {own:.2f}); "
                    "align rows and layers with the tokens of the batch"
                )
        for position in judged:
            if (own := float(agreement[position, 0])) < least_agreement:
                return (
                    f"the routing of layer {self.layers[position]} does not belong to these tokens "
                    f"(agreement {own:.2f} with the live router, expected {least_agreement:.2f} or "
                    "more); check the order of tokens and layers, and the weights"
                )
        return ""

    def _sample(self, position: int, place: int, live: Tensor, given: Tensor) -> None:
        present = (given >= 0).all(dim=-1)
        live, given = live[present], given[present]
        self._sampled[position, place] += torch.stack([present.sum(), _matching(live, given).sum()])
        for side, ids in enumerate((live, given)):
            self._popular[position, place, side] += count_experts(ids, self._popular.shape[-1])

    def _agreement(self) -> Tensor:
        """``[L, places]``; 1.0 where nothing was compared at the own place, 0.0 elsewhere."""
        tokens, matching = self._sampled.double().unbind(dim=-1)
        pairs = (tokens * self._top_k).clamp(min=1)
        live, given = self._popular.double().unbind(dim=2)
        by_chance = (live * given).sum(dim=-1) / (pairs * tokens.clamp(min=1))
        agreement = (matching / pairs - by_chance) / (1 - by_chance).clamp(min=1e-9)
        agreement[tokens == 0] = 0.0
        # A router that always chooses the same experts matches by chance alone.
        agreement[(matching == pairs) & (tokens > 0)] = 1.0
        own = agreement[:, 0]
        own[tokens[:, 0] == 0] = 1.0
        return agreement


def _matching(live: Tensor, given: Tensor) -> Tensor:
    """How many experts two choices ``[T, K]`` share, per token: int64 ``[T]``."""
    return (live.unsqueeze(-1) == given.unsqueeze(-2)).any(dim=-1).sum(dim=-1)


def _shifted(live: Tensor, given: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Both cut so that row t of ``live`` meets row t + ``rows`` of ``given``."""
    if rows > 0:
        return live[:-rows], given[rows:]
    return (live[-rows:], given[:rows]) if rows < 0 else (live, given)


def _blocks(ids: Tensor) -> Tensor:
    """Rows of ``[T, K]`` from all over, in runs: a batch may take turns between sequences."""
    if len(ids) <= _SAMPLED_BLOCKS * _ENOUGH_TOKENS:
        return ids
    return torch.cat(
        [
            ids[begin : begin + _ENOUGH_TOKENS]
            for block in range(_SAMPLED_BLOCKS)
            for begin in [block * (len(ids) - _ENOUGH_TOKENS) // (_SAMPLED_BLOCKS - 1)]
        ]
    )


def _describe(place: tuple[int, int]) -> str:
    rows, layers = place
    what, by = ("row", rows) if rows else ("MoE layer", layers)
    return f"the {what} {'after' if by > 0 else 'before'} it"
