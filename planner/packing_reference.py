"""The search of ``foremoe.planner.packing_search`` in plain Python: its oracle, and easier to read.

Lists and integers; what the kernel updates or bounds is reckoned afresh here for each proposal.
"""

from dataclasses import dataclass

LEVELS = 64
START = 12


@dataclass(frozen=True)
class Sequence:
    """tokens; attention in pairs over all layers; pairs by rank and layer."""

    tokens: int
    attention: int
    pairs: list[list[int]]


def search(
    sequences: list[Sequence],
    start: list[int],
    micro_steps: int,
    token_budget: int,
    max_sequences: int,
    proposals: int,
) -> list[int]:
    """Better bins than ``start``, as the kernel finds them."""
    ranks, layers = len(sequences[0].pairs), len(sequences[0].pairs[0])
    bins = list(start)
    random = 1

    def draw(choices: int) -> int:
        nonlocal random
        random = (random * 6364136223846793005 + 1442695040888963407) % 2**64
        return (random >> 33) % choices

    def inside(place: int) -> list[Sequence]:
        return [sequences[s] for s, bin_of_s in enumerate(bins) if bin_of_s == place]

    def step_cost(micro_step: int) -> int:
        by_rank = [inside(micro_step * ranks + rank) for rank in range(ranks)]
        members = [sequence for held in by_rank for sequence in held]
        attention = max(sum(sequence.attention for sequence in held) for held in by_rank)
        return attention + sum(
            max(sum(sequence.pairs[rank][layer] for sequence in members) for rank in range(ranks))
            for layer in range(layers)
        )

    def fits(place: int) -> bool:
        held = inside(place)
        tokens = sum(sequence.tokens for sequence in held)
        return tokens <= token_budget and len(held) <= max_sequences

    first_threshold = sum(map(step_cost, range(micro_steps))) // (len(sequences) * START)
    for proposal in range(proposals):
        level = LEVELS - 1 - proposal * LEVELS // proposals
        threshold = first_threshold * level * level // LEVELS**2
        one, other = draw(len(sequences)), draw(len(sequences) + micro_steps * ranks)
        swap = other < len(sequences)
        source = bins[one]
        target = bins[other] if swap else other - len(sequences)
        if source == target:
            continue
        if not swap and len(inside(source)) == 1 and inside(target):
            continue
        touched = {source // ranks, target // ranks}
        before = sum(map(step_cost, touched))
        earlier = list(bins)
        bins[one] = target
        if swap:
            bins[other] = source
        grows = sum(map(step_cost, touched)) - before
        if grows > threshold or not (fits(source) and fits(target)):
            bins = earlier
    return bins
