"""Whether replayed routing lies on the rows and layers of the tokens that it was chosen for.

Two things have to be told apart. A rollout engine and a trainer disagree on some experts of some
tokens (other kernels, older weights), in all sequences more or less alike. Routing that was laid on
other tokens or layers disagrees on most experts of nearly all of them, and these may be one
sequence, or a part of one, among many that are right. So sequences and their segments are judged
one by one, by what the best quarter of the micro-batch agrees on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SEGMENT_ROWS = 128

# Where the given routing may really belong: (rows, layers) away from where it was replayed.
PLACES = ((-1, 0), (1, 0), (0, -1), (0, 1))
ROW_PLACES = 2  # so many of them are rows


class SequenceRows:
    """Which rows of a micro-batch are which sequence's, in order; cut into segments.

    names: of the sequences; "" for a micro-batch that is taken for one. rows: int64 ``[N]``,
    positions in the micro-batch, sequence by sequence. segment: int64 ``[N]``, of each of them.
    sequence_of_segment: int64 ``[G]``, in host memory.
    """

    def __init__(self, positions: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """positions: int64 positions of each sequence's tokens, in order.

        device: where routing is compared, so that nothing has to be copied there for each layer.
        """
        self.names = tuple(positions)
        empty = torch.zeros(0, dtype=torch.int64)
        self.rows = torch.cat([empty, *(at.cpu() for at in positions.values())])
        lengths = torch.tensor([len(at) for at in positions.values()], dtype=torch.int64)
        segments = (lengths // SEGMENT_ROWS).clamp(min=1)  # the last one takes what is left over
        self.sequence_of_segment = torch.arange(len(lengths)).repeat_interleave(segments)
        self._sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
        in_sequence = torch.arange(len(self.rows)) - (lengths.cumsum(0) - lengths)[self._sequence]
        before = (segments.cumsum(0) - segments)[self._sequence]
        last = segments[self._sequence] - 1
        self.segment = (before + (in_sequence // SEGMENT_ROWS).minimum(last)).to(device)
        self.rows, self._sequence = self.rows.to(device), self._sequence.to(device)

    def units(self, counts: Tensor) -> Tensor:
        """Counts of segments ``[G, ...]`` and behind them of sequences, ``[G + S, ...]``."""
        total = counts.new_zeros(len(self.names), *counts.shape[1:])
        return torch.cat([counts, total.index_add(0, self.sequence_of_segment, counts)])

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self.sequence_of_segment)

    def sequence_of(self, unit: int) -> str:
        """Whose a unit is."""
        segment = unit < self.segments
        return self.names[self.sequence_of_segment[unit] if segment else unit - self.segments]

    def neighbours(self, distance: int) -> tuple[Tensor, Tensor]:
        """For each row the one ``distance`` rows on, and whether its sequence has it."""
        index = torch.arange(len(self.rows), device=self.rows.device) + distance
        there = index.clamp(0, max(len(self.rows) - 1, 0))
        inside = (index == there) & (self._sequence[there] == self._sequence)
        return self.rows[there], inside


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """What live and given routing have in common in one forward pass of a layer.

    own: int64 ``[G, 2]`` by segment: tokens that were replayed, and matching pairs. places: int64
    ``[G, 4, 3]``, for each of PLACES: tokens compared, pairs that match there, and pairs of the
    same tokens that match at their own place. differing: tokens whose set of experts differs,
    int64. popular: int64 ``[2, E]``, how often each expert was live and given. top_k: pairs of a
    token. rows: the micro-batch.
    """

    own: Tensor
    places: Tensor
    differing: Tensor
    popular: Tensor
    top_k: int
    rows: SequenceRows

    def cpu(self) -> "Overlap":
        """The same in host memory, in float64."""
        own, places, popular = (t.cpu().double() for t in (self.own, self.places, self.popular))
        return Overlap(own, places, self.differing, popular, self.top_k, self.rows)

    def chance(self) -> float:
        """Share of pairs that would match by chance."""
        return chance_of(self.popular, self.own[:, 0].sum(), self.top_k)


def overlap(
    live: Tensor, given: Tensor, position: int, rows: SequenceRows, num_experts: int
) -> Overlap:
    """Compare one layer, without waiting for the device.

    live: ``[T, K]`` the router's own choice. given: ``[T, L, K]`` what is replayed in all layers,
    negative where nothing is. position: of the layer in ``given``. All on the device of ``rows``.
    """
    top_k = live.shape[-1]
    chosen, here = live[rows.rows], given[rows.rows, position]
    present = (here >= 0).all(dim=-1)
    matching = _matching(chosen, here) * present
    own = _by_segment([present, matching], rows)
    places = [
        torch.zeros_like(own[:, :1]).expand(-1, 3)
        if not 0 <= position + layers < given.shape[1]
        else _elsewhere(chosen, given[:, position + layers], present, matching, distance, rows)
        for distance, layers in PLACES
    ]
    popular = torch.stack([_popularity(ids, present, num_experts) for ids in (chosen, here)])
    differing = (present & (matching < top_k)).sum()
    return Overlap(own, torch.stack(places, dim=1), differing, popular, top_k, rows)


def chance_of(popular: Tensor, tokens: Tensor, top_k: int) -> float:
    """Share of pairs that match by chance; popular: ``[2, E]`` as in Overlap."""
    live, given = popular.double()
    return float((live * given).sum() / (tokens * tokens * top_k).clamp(min=1))


def _elsewhere(
    chosen: Tensor,
    given: Tensor,
    present: Tensor,
    matching: Tensor,
    distance: int,
    rows: SequenceRows,
) -> Tensor:
    there, inside = rows.neighbours(distance)
    ids = given[there]
    both = present & inside & (ids >= 0).all(dim=-1)
    counts = [both, _matching(chosen, ids) * both, matching * both]
    return _by_segment(counts, rows)


def _by_segment(counts: list[Tensor], rows: SequenceRows) -> Tensor:
    """Counts by row, each ``[N]``, as ``[G, counts]``."""
    stacked = torch.stack([count.long() for count in counts], dim=1)
    total = stacked.new_zeros(len(rows.sequence_of_segment), len(counts))
    return total.index_add(0, rows.segment, stacked)


def _matching(live: Tensor, given: Tensor) -> Tensor:
    """How many experts two choices ``[N, K]`` share, by row: int64 ``[N]``."""
    return (live.unsqueeze(-1) == given.unsqueeze(-2)).any(dim=-1).sum(dim=-1)


def _popularity(ids: Tensor, present: Tensor, num_experts: int) -> Tensor:
    weights = present.long().unsqueeze(-1).expand_as(ids)
    total = weights.new_zeros(num_experts)
    return total.scatter_add(0, ids.long().clamp(min=0).flatten(), weights.flatten())
