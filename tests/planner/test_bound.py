"""The certificate is a bound: no placement of a small instance beats it, and it is often met."""

from itertools import combinations, product

import numpy as np
import pytest

from foremoe.planner.bound import lower_bound
from foremoe.planner.homes import contiguous_homes


def best_possible(weight: list[int], home: list[int], ranks: int, spare_slots: int) -> int:
    """The least busiest rank over all placements, by Hall's condition on the experts' hosts."""
    experts = range(len(weight))
    choices = [
        [
            held
            for count in range(spare_slots + 1)
            for held in combinations([e for e in experts if home[e] != rank], count)
        ]
        for rank in range(ranks)
    ]
    subsets = [s for count in experts for s in combinations(experts, count + 1)]
    least = sum(weight)
    for placement in product(*choices):
        hosts = [
            {home[e]} | {rank for rank in range(ranks) if e in placement[rank]} for e in experts
        ]
        needed = max(
            -(-sum(weight[e] for e in subset) // len(set().union(*(hosts[e] for e in subset))))
            for subset in subsets
        )
        least = min(least, needed)
    return least


@pytest.mark.parametrize("seed", range(12))
def test_no_placement_beats_the_bound(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ranks, experts, spare_slots = [(2, 4, 1), (3, 3, 1), (2, 4, 2), (3, 6, 1)][seed % 4]
    home = contiguous_homes(1, experts, ranks)
    weight = np.floor(generator.exponential(20, (1, experts))).astype(np.int64)
    bound = int(lower_bound(weight, home, ranks, spare_slots)[0])
    best = best_possible(weight[0].tolist(), home[0].tolist(), ranks, spare_slots)
    assert bound <= best


def test_slots_that_cannot_carry_the_excess_raise_the_bound() -> None:
    # Rank 0 holds 4 experts of 10; rank 1 has room for 20 but its one slot brings at most 10.
    weight = np.array([[10, 10, 10, 10, 0, 0, 0, 0]], np.int64)
    home = contiguous_homes(1, 8, 2)
    assert lower_bound(weight, home, 2, 0).tolist() == [40]
    assert lower_bound(weight, home, 2, 1).tolist() == [30]
    assert lower_bound(weight, home, 2, 2).tolist() == [20]
