"""Packing by length alone, as training frameworks do it: routing-aware packing must beat it.

A bin is one rank in one micro-step; it holds at most ``token_budget`` tokens and ``max_sequences``
sequences. Bin b is rank b % P of micro-step b // P. First fit in order of arrival, and longest
first, fill as few bins as they can; the even packings then spread the sequences over just as many
micro-steps, longest first to the bin with fewest tokens (Graham's LPT rule), once with bins of like
lengths side by side in a micro-step and once with long and short ones.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

Bins = NDArray[np.int64]


def length_packings(
    tokens: NDArray[np.int64], ranks: int, token_budget: int, max_sequences: int
) -> dict[str, Bins]:
    """The packings that need fewest micro-steps, by name: the bin of every sequence, ``[S]``.

    tokens: int64 ``[S]``, at least one sequence, none longer than the budget. If there are as many
    sequences as bins, no bin is empty.
    """
    longest_first = np.argsort(-tokens, kind="stable")
    fitted = {
        "first-fit": _first_fit(tokens, np.arange(len(tokens)), token_budget, max_sequences),
        "first-fit-decreasing": _first_fit(tokens, longest_first, token_budget, max_sequences),
    }
    needed = {name: int(bins.max()) // ranks + 1 for name, bins in fitted.items()}
    micro_steps = min(needed.values())
    packings = {
        name: _without_empty(bins, tokens, micro_steps * ranks)
        for name, bins in fitted.items()
        if needed[name] == micro_steps
    }
    even = _even(tokens, longest_first, micro_steps * ranks, token_budget, max_sequences)
    if even is not None:
        packings["even"] = even
        packings["even-mixed"] = even % micro_steps * ranks + even // micro_steps
    return packings


def _first_fit(
    tokens: NDArray[np.int64], order: NDArray[np.int64], token_budget: int, max_sequences: int
) -> Bins:
    """Each sequence to the first bin with room; a new bin if there is none."""
    bins = np.zeros(len(tokens), np.int64)
    room = np.full(len(tokens), token_budget, np.int64)
    free = np.full(len(tokens), max_sequences, np.int64)
    opened = 0
    for sequence in order:
        fits = (room[: opened + 1] >= tokens[sequence]) & (free[: opened + 1] > 0)
        found = int(np.argmax(fits))
        opened = max(opened, found + 1)
        bins[sequence] = found
        room[found] -= tokens[sequence]
        free[found] -= 1
    return bins


def _even(
    tokens: NDArray[np.int64],
    order: NDArray[np.int64],
    bins: int,
    token_budget: int,
    max_sequences: int,
) -> Bins | None:
    """Each sequence to the bin with fewest tokens; None if some bin would overflow."""
    placed = np.zeros(len(tokens), np.int64)
    emptiest = [(0, 0, index) for index in range(bins)]  # tokens, sequences, bin
    for sequence in order:
        if not emptiest:
            return None
        held, count, index = heapq.heappop(emptiest)
        held, count = held + int(tokens[sequence]), count + 1
        if held > token_budget:
            return None
        placed[sequence] = index
        if count < max_sequences:
            heapq.heappush(emptiest, (held, count, index))
    return placed


def _without_empty(placed: Bins, tokens: NDArray[np.int64], bins: int) -> Bins:
    """Give every empty bin the shortest sequence of the fullest bin that can spare one."""
    held = np.bincount(placed, tokens, minlength=bins).astype(np.int64)
    count = np.bincount(placed, minlength=bins)
    placed = placed.copy()
    for empty in np.flatnonzero(count == 0):
        if count.max() < 2:
            break
        fullest = int(np.argmax(np.where(count > 1, held, -1)))
        inside = np.flatnonzero(placed == fullest)
        moved = inside[np.argmin(tokens[inside])]
        placed[moved] = empty
        for index, sign in ((fullest, -1), (empty, 1)):
            held[index] += sign * tokens[moved]
            count[index] += sign
    return placed
