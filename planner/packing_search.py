"""The kernel of routing-aware packing: exchange sequences between bins as long as it pays.

Threshold accepting (Dueck and Scheuer, J. Comput. Phys. 90, 1990): a proposal exchanges two random
sequences, or moves one to another bin, and is taken if the cost grows by no more than a threshold
that falls to zero. Everything is integers, also the random numbers (Knuth's MMIX generator), so the
result is a function of the input. Most proposals end at a bound that needs one entry per layer: the
rank that was slowest before is no slower than the one that will be.

Bin b is rank b % P of micro-step b // P. What a bin holds is a row of three numbers: tokens,
sequences, attention.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part

LEVELS = 64  # of the threshold, which falls with their square
START = 12  # the first threshold is a sequence's mean share of the cost / START
MULTIPLIER = 6364136223846793005
INCREMENT = 1442695040888963407


@kernel
def search(
    sequence: NDArray[np.int64],
    rank_pairs: NDArray[np.uint32],
    start: NDArray[np.int64],
    micro_steps: int,
    token_budget: int,
    max_sequences: int,
    proposals: int,
) -> NDArray[np.int64]:
    """Better bins than ``start [S]``; ``foremoe.planner.packing`` states the problem.

    sequence: int64 ``[S + 1, 3]``, what a sequence brings to its bin: tokens, 1, attention in pairs
    over all layers. rank_pairs: uint32 ``[S + 1, P, L]``. The last rows are zeros, for no sequence.
    No bin is emptied unless another one is filled by it.
    """
    bins, (_, ranks, layers) = start.copy(), rank_pairs.shape
    held = np.zeros((micro_steps * ranks, 3), np.int64)
    pairs = np.zeros((micro_steps, ranks, layers), np.int64)
    for index in range(len(bins)):
        _exchange_held(sequence, index, len(bins), held, bins[index])
        _exchange_pairs(rank_pairs, index, len(bins), pairs, bins[index] // ranks)
    slowest = np.zeros((micro_steps, layers), np.int64)
    expert_cost = np.zeros(micro_steps, np.int64)
    for micro_step in range(micro_steps):
        expert_cost[micro_step] = _find_slowest(pairs, slowest, micro_step)
    first_threshold = _cost(expert_cost, held, ranks) // (len(bins) * START)
    scratch = np.zeros(layers, np.int64)
    random = np.uint64(1)
    for proposal in range(proposals):
        level = LEVELS - 1 - proposal * LEVELS // proposals
        threshold = first_threshold * level * level // (LEVELS * LEVELS)
        random = random * np.uint64(MULTIPLIER) + np.uint64(INCREMENT)
        one = _choice(random, len(bins))
        random = random * np.uint64(MULTIPLIER) + np.uint64(INCREMENT)
        other = _choice(random, len(bins) + len(held))
        swap = other < len(bins)
        source = bins[one]
        target = bins[other] if swap else other - len(bins)
        other = other if swap else len(bins)
        if not _allowed(
            sequence, held, one, other, source, target, swap, token_budget, max_sequences
        ):
            continue
        change = _attention_change(
            held, ranks, source, target, sequence[one, 2] - sequence[other, 2]
        )
        source_step, target_step = source // ranks, target // ranks
        if source_step != target_step:
            arriving = _bound(rank_pairs, one, other, slowest, target_step)
            if change + arriving + _bound(rank_pairs, other, one, slowest, source_step) > threshold:
                continue
            change += _cost_after(rank_pairs, other, one, pairs, source_step, scratch)
            change -= expert_cost[source_step]
            if change + arriving > threshold:
                continue
            change += _cost_after(rank_pairs, one, other, pairs, target_step, scratch)
            change -= expert_cost[target_step]
        if change > threshold:
            continue
        bins[one] = target
        if swap:
            bins[other] = source
        _exchange_held(sequence, other, one, held, source)
        _exchange_held(sequence, one, other, held, target)
        if source_step != target_step:
            _exchange_pairs(rank_pairs, other, one, pairs, source_step)
            _exchange_pairs(rank_pairs, one, other, pairs, target_step)
            expert_cost[source_step] = _find_slowest(pairs, slowest, source_step)
            expert_cost[target_step] = _find_slowest(pairs, slowest, target_step)
    return bins


@part
def _choice(random: np.uint64, choices: int) -> int:
    return int(np.int64(random >> np.uint64(33))) % choices


@part
def _find_slowest(pairs: NDArray[np.int64], slowest: NDArray[np.int64], micro_step: int) -> int:
    """Note the slowest rank of every layer of a micro-step; the sum of their pairs."""
    _, ranks, layers = pairs.shape
    cost = 0
    for layer in range(layers):
        best = 0
        for rank in range(1, ranks):
            if pairs[micro_step, rank, layer] > pairs[micro_step, best, layer]:
                best = rank
        slowest[micro_step, layer] = best
        cost += pairs[micro_step, best, layer]
    return cost


@part
def _cost(expert_cost: NDArray[np.int64], held: NDArray[np.int64], ranks: int) -> int:
    cost = 0
    for micro_step in range(len(expert_cost)):
        cost += expert_cost[micro_step]
        attention = 0
        for place in range(micro_step * ranks, (micro_step + 1) * ranks):
            attention = max(attention, held[place, 2])
        cost += attention
    return cost


@part
def _allowed(
    sequence: NDArray[np.int64],
    held: NDArray[np.int64],
    one: int,
    other: int,
    source: int,
    target: int,
    swap: bool,
    token_budget: int,
    max_sequences: int,
) -> bool:
    """Whether ``one`` may go from bin ``source`` to ``target`` for ``other``, or for nothing."""
    if source == target:
        return False
    if not swap and (
        held[target, 1] >= max_sequences or (held[source, 1] == 1 and held[target, 1] > 0)
    ):
        return False
    gained = sequence[one, 0] - sequence[other, 0]
    return bool(max(held[target, 0] + gained, held[source, 0] - gained) <= token_budget)


@part
def _attention_change(
    held: NDArray[np.int64], ranks: int, source: int, target: int, carried: int
) -> int:
    """What the slowest ranks' attention grows by, over the one or two micro-steps."""
    change = 0
    for place in (source, target):
        before, after = 0, 0
        first = place // ranks * ranks
        for index in range(first, first + ranks):
            attention = held[index, 2]
            before = max(before, attention)
            if index == source:
                attention -= carried
            elif index == target:
                attention += carried
            after = max(after, attention)
        change += after - before
        if source // ranks == target // ranks:
            break
    return change


@part
def _bound(
    rank_pairs: NDArray[np.uint32],
    coming: int,
    leaving: int,
    slowest: NDArray[np.int64],
    micro_step: int,
) -> int:
    """What the slowest ranks of a micro-step get more."""
    change = 0
    for layer in range(slowest.shape[1]):
        rank = slowest[micro_step, layer]
        change += rank_pairs[coming, rank, layer]
        change -= rank_pairs[leaving, rank, layer]
    return change


@part
def _cost_after(
    rank_pairs: NDArray[np.uint32],
    coming: int,
    leaving: int,
    pairs: NDArray[np.int64],
    micro_step: int,
    scratch: NDArray[np.int64],
) -> int:
    """A micro-step's expert cost after an exchange."""
    _, ranks, layers = pairs.shape
    for layer in range(layers):
        scratch[layer] = 0
    for rank in range(ranks):
        for layer in range(layers):
            after = pairs[micro_step, rank, layer] - rank_pairs[leaving, rank, layer]
            after += rank_pairs[coming, rank, layer]
            scratch[layer] = max(scratch[layer], after)
    cost = 0
    for layer in range(layers):
        cost += scratch[layer]
    return cost


@part
def _exchange_held(
    sequence: NDArray[np.int64], coming: int, leaving: int, held: NDArray[np.int64], place: int
) -> None:
    for column in range(3):
        held[place, column] += sequence[coming, column] - sequence[leaving, column]


@part
def _exchange_pairs(
    rank_pairs: NDArray[np.uint32],
    coming: int,
    leaving: int,
    pairs: NDArray[np.int64],
    micro_step: int,
) -> None:
    _, ranks, layers = pairs.shape
    for rank in range(ranks):
        for layer in range(layers):
            pairs[micro_step, rank, layer] -= rank_pairs[leaving, rank, layer]
            pairs[micro_step, rank, layer] += rank_pairs[coming, rank, layer]
