"""Paired measurements: two ways in turns (A B B A), their ratio with an interval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of the pairs' ratios with a 95% bootstrap interval."""

    ratio: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def turns(pairs: int) -> Iterator[bool]:
    """A B, B A, A B, ...: True for A; neither way profits from a drift of the machine."""
    for pair in range(pairs):
        yield from (True, False) if pair % 2 == 0 else (False, True)


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """above[i] / below[i] over pairs i."""
    ratios = np.array(above) / np.array(below)
    draws = np.random.default_rng(0).choice(ratios, (2000, ratios.size))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high), ratios.size)
