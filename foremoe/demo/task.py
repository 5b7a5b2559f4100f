"""The toy task: sort the digits of the prompt. The reward is computed, not learned.

prompt  ^ 7 3 9 1 >      answer  1 3 7 9 $
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIGITS = 5
START, SEPARATOR, END, PADDING = 10, 11, 12, 13
VOCABULARY = 14
SHORTEST, LONGEST = 6, 14


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt and its only right answer, as token ids."""

    prompt: NDArray[np.int64]
    answer: NDArray[np.int64]


def draw(generator: np.random.Generator) -> Problem:
    """A random problem of ``SHORTEST`` to ``LONGEST`` digits."""
    digits = generator.integers(0, DIGITS, generator.integers(SHORTEST, LONGEST + 1))
    prompt = np.concatenate([[START], digits, [SEPARATOR]])
    answer = np.concatenate([np.sort(digits), [END]])
    return Problem(prompt.astype(np.int64), answer.astype(np.int64))


def reward(problem: Problem, generated: NDArray[np.int64]) -> float:
    """Share of answer positions that are right, in [0, 1]; extra tokens count as wrong ones."""
    length = max(len(problem.answer), len(generated))
    common = min(len(problem.answer), len(generated))
    return float(np.sum(problem.answer[:common] == generated[:common]) / length)
