"""How far replayed routing is from what the live router would choose, and whether it is misplaced.

A rollout engine and a trainer disagree on some tokens (other kernels, older weights): that share is
worth watching. Routing that belongs to other tokens or other layers disagrees on nearly all of
them, yet nothing fails: shapes fit and every expert id is valid.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.errors import InvalidInputError
from foremoe.routing.placement import Overlap, SequenceRows, chance_of, overlap
from foremoe.routing.verdict import Misplacement, agreement_of, judge

_SHOWN = 3


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
        self._num_experts = num_experts
        self._position = {layer: i for i, layer in enumerate(layers)}
        self._latest: dict[int, Overlap] = {}
        self._top_k = 1
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        layers = len(self.layers)
        # Per layer: tokens, matching pairs, differing tokens.
        self._totals = torch.zeros(layers, 3, dtype=torch.int64)
        # How often each expert was live and given.
        self._popular = torch.zeros(layers, 2, self._num_experts, dtype=torch.int64)
        self._latest.clear()

    def compare(
        self, layer: int, live: Tensor, given: Tensor, rows: SequenceRows | None = None
    ) -> None:
        """One forward pass of a layer.

        live: ``[T, K]`` the router's own choice. given: ``[T, L, K]`` what is replayed in all
        layers, negative where nothing is. rows: the sequences of the batch; by default one of all.
        """
        position = self._position[layer]
        self._top_k = live.shape[-1]
        if rows is None:
            rows = SequenceRows({"": torch.arange(len(live))}, live.device)
        self._latest[layer] = one = overlap(live, given, position, rows, self._num_experts)
        if self._totals.device != live.device:
            self._totals = self._totals.to(live.device)
            self._popular = self._popular.to(live.device)
        self._totals[position] += torch.stack([*one.own.sum(dim=0), one.differing])
        self._popular[position] += one.popular

    def report(self) -> list[LayerMismatch]:
        """What was counted so far, by layer."""
        top_k, reports = self._top_k, []
        for layer, totals, popular in zip(self.layers, self._totals, self._popular, strict=True):
            tokens, matching, differing = totals.tolist()
            share = torch.tensor(matching / (tokens * top_k) if tokens else 1.0)
            agreement = agreement_of(share, chance_of(popular, totals[0], top_k))
            missing = tokens * top_k - matching
            reports.append(LayerMismatch(layer, tokens, differing, missing, float(agreement)))
        return reports

    def check(
        self, group: dist.ProcessGroup | None = None, least_agreement: float = 0.2
    ) -> list[LayerMismatch]:
        """This rank's report, or InvalidInputError when routing seems to belong elsewhere.

        Judged is the latest forward pass of every layer: a sequence or a segment of one, where a
        neighbouring row or layer agrees clearly better than its own place, or which agrees less
        than half as well as the best quarter of the batch (foremoe.routing.verdict); from 64 tokens
        on also the batch as a whole, where agreement is below ``least_agreement``. Collective over
        the group: when one rank's routing is refused, all ranks raise, or the others would wait for
        it in the next collective.
        """
        found = judge({layer: one.cpu() for layer, one in self._latest.items()}, least_agreement)
        self._latest.clear()
        refusals = [_refusal(found) if found else ""]
        if group is not None:
            mine = f"rank {dist.get_rank(group)}: {refusals[0]}" if found else ""
            refusals = [""] * group.size()
            dist.all_gather_object(refusals, mine, group=group)
        if any(refusals):
            raise InvalidInputError("replay: " + "; ".join(filter(None, refusals)))
        return self.report()


def _refusal(found: list[Misplacement]) -> str:
    """One line that names the layers and sequences; where places are known, of the first one."""
    first = next((one for one in found if one.place is not None), found[0])
    alike = [one for one in found if one.place == first.place]
    what = f"the routing of {_names(alike)}"
    if first.place is None:
        return (
            f"{what} does not belong to these tokens (agreement {first.own:.2f} with the live "
            f"router, expected {first.other:.2f} or more); check the order of tokens and layers, "
            "and the weights"
        )
    distance, layers = first.place
    kind, by = ("row", distance) if distance else ("MoE layer", layers)
    return (
        f"{what} is misplaced, the {kind} {'after' if by > 0 else 'before'} it fits the live "
        f"router better (agreement {first.other:.2f}, own place {first.own:.2f}); align rows and "
        "layers with the tokens of the batch"
    )


def _names(found: list[Misplacement]) -> str:
    """``layers 2, 3, 7 and 4 more, sequence 'a'``; without the sequences if it is the batch."""
    layers = dict.fromkeys(str(one.layer) for one in found if one.layer is not None)
    sequences = dict.fromkeys(repr(one.sequence) for one in found if one.sequence)
    where = _listed("layer", list(layers)) if layers else "all layers"
    return ", ".join([where, *([_listed("sequence", list(sequences))] if sequences else [])])


def _listed(noun: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names[:_SHOWN])}{more}"
