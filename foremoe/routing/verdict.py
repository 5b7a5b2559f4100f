"""Judges what live and given routing have in common: which sequences of which layers are misplaced.

*Agreement* is the share of (token, expert) pairs that match, above the share that would by chance
given how popular each expert is, as in Cohen's kappa. 1.0 is the same routing, 0.0 is chance.

A share of n pairs is taken to be below a line when n / 2 observations whose true share is the line
show so little less than once in 10^9 judgements: n / 2 * KL(share, line) >= ln 10^9 (Hoeffding
1963, theorem 1; half, as the pairs of a token are not independent). So there is no least length: of
few tokens only what is beyond doubt is refused.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foremoe.routing.placement import PLACES, ROW_PLACES, Overlap

LEAST_TOKENS = 64  # of a micro-batch, to judge it as a whole
DOUBT_NATS = math.log(1e9)
# Of pairs that match. A text that repeats itself is routed alike again and again, and a near tie
# then differs in all of its tokens. That leaves half of the pairs or more; of top-1 routing nothing
# in that layer, so it is judged over all layers only, and by shifted rows, which fit no better.
ENOUGH_SHARE = 0.5
CLEARLY = 0.1


@dataclass(frozen=True, slots=True)
class Misplacement:
    """Routing that does not belong where it was replayed.

    layer: None for all of them together. sequence: empty for the whole micro-batch. place: of
    PLACES the one that fits better, if one does. own: agreement where it is. other: agreement at
    ``place``, or else what is expected at least.
    """

    layer: int | None
    sequence: str
    place: tuple[int, int] | None
    own: float
    other: float


def judge(overlaps: Mapping[int, Overlap], least_agreement: float) -> list[Misplacement]:
    """What is misplaced in a forward pass, one finding a layer and sequence; empty if all is right.

    overlaps: by layer id, of the same rows, in host memory.
    """
    found: dict[tuple[int | None, str], Misplacement] = {}
    for layer, one in overlaps.items():
        findings = [*_unlike_others(layer, one, least_agreement), *_shifted(layer, one)]
        for finding in findings or _as_a_whole(layer, one, least_agreement):
            found[layer, finding.sequence] = finding
    sequences = {sequence for _, sequence in found}
    for finding in _unlike_in_all_layers(list(overlaps.values()), least_agreement):
        if finding.sequence not in sequences:
            found[None, finding.sequence] = finding
    return list(found.values())


def _unlike_others(layer: int, one: Overlap, least: float) -> Iterator[Misplacement]:
    """Sequences that agree much less than others do."""
    if one.top_k > 1:
        yield from _below(layer, one, one.rows.units(one.own), one.chance(), least)


def _unlike_in_all_layers(overlaps: list[Overlap], least: float) -> Iterator[Misplacement]:
    if overlaps:
        one = overlaps[0]
        counts = torch.stack([one.rows.units(each.own) for each in overlaps]).mean(dim=0)
        chance = sum(each.chance() for each in overlaps) / len(overlaps)
        yield from _below(None, one, counts, chance, least)


def _below(
    layer: int | None, one: Overlap, counts: Tensor, chance: float, least: float
) -> Iterator[Misplacement]:
    """Units that agree less than half as well as the best quarter of the segments.

    counts: ``[U, 2]``, tokens and matching pairs.
    """
    pairs, matching = counts[:, 0] * one.top_k, counts[:, 1]
    share = matching / pairs.clamp(min=1)
    agreement = agreement_of(share, chance)
    segments = one.rows.segments
    judged = agreement[:segments][pairs[:segments] > 0]
    if len(judged) == 0:
        return
    half = float(torch.quantile(judged, 0.75, interpolation="lower")) / 2
    line = min(chance + max(half, least) * (1 - chance), ENOUGH_SHARE)
    expected = float(agreement_of(torch.tensor(line), chance))
    for unit in (_doubt(pairs, share, line) >= DOUBT_NATS).nonzero()[:, 0].tolist():
        name = one.rows.sequence_of(unit)
        yield Misplacement(layer, name, None, float(agreement[unit]), expected)


def _shifted(layer: int, one: Overlap) -> Iterator[Misplacement]:
    """Sequences that agree better with a neighbouring row than with their own."""
    own, there, gain, tokens = _places(one, one.rows.units(one.places[:, :ROW_PLACES]))
    surely = _doubt(tokens * one.top_k, (1 - gain) / 2, 0.5) >= DOUBT_NATS  # taken for no gain
    for unit, place in (surely & (there > own + CLEARLY)).nonzero().tolist():
        at, name = (unit, place), one.rows.sequence_of(unit)
        yield Misplacement(layer, name, PLACES[place], float(own[at]), float(there[at]))


def _as_a_whole(layer: int, one: Overlap, least: float) -> Iterator[Misplacement]:
    """The micro-batch: of short sequences none may be judged for itself."""
    tokens, matching = one.own.sum(dim=0)
    if tokens < LEAST_TOKENS:
        return
    share = matching / (tokens * one.top_k)
    agreement = float(agreement_of(share, one.chance()))
    differs = bool(one.top_k > 1 and share < ENOUGH_SHARE)
    own, there, _, _ = _places(one, one.places.sum(dim=0)[: None if differs else ROW_PLACES])
    place = int((there - own).argmax())
    if there[place] > max(float(own[place]) + CLEARLY, least):
        yield Misplacement(layer, "", PLACES[place], float(own[place]), float(there[place]))
    elif agreement < least and differs:
        yield Misplacement(layer, "", None, agreement, least)


def _places(one: Overlap, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of ``places [..., 3]``: agreement at the own place and there, share gained there, tokens."""
    tokens, there, own = counts.unbind(dim=-1)
    pairs, chance = (tokens * one.top_k).clamp(min=1), one.chance()
    own, there = own / pairs, there / pairs
    return agreement_of(own, chance), agreement_of(there, chance), there - own, tokens


def agreement_of(share: Tensor, chance: float) -> Tensor:
    """Share of matching pairs above chance; 1.0 where all match, even if by chance alone."""
    return torch.where(share == 1, 1.0, (share - chance) / max(1 - chance, 1e-9))


def _doubt(pairs: Tensor, share: Tensor, line: float) -> Tensor:
    """How unlikely so small a share is where the true one is ``line``, in nats."""
    if not 0 < line < 1:
        return torch.zeros_like(pairs)
    divergence = torch.xlogy(share, share / line) + torch.xlogy(1 - share, (1 - share) / (1 - line))
    return pairs / 2 * torch.where(share < line, divergence, 0.0)
