"""Hypothesis strategies for packing problems, and recounts that share nothing with the planner."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from foremoe.planner.packing import UNLIMITED, AttentionCost, Packing, PackingProblem


@st.composite
def packing_problems(draw: st.DrawFn, max_sequences: int = 12) -> PackingProblem:
    """Up to two mini-batches in any order; lengths and loads from all zero to beyond 2**31."""
    sequences, ranks, layers = (draw(st.integers(1, most)) for most in (max_sequences, 4, 3))
    most = draw(st.sampled_from([0, 3, 1000, 2**31]))
    tokens = draw(hnp.arrays(np.int64, sequences, elements=st.integers(0, 20)))
    return PackingProblem(
        tokens=tokens,
        rank_pairs=draw(
            hnp.arrays(np.uint32, (sequences, ranks, layers), elements=st.integers(0, most))
        ),
        mini_batch=draw(hnp.arrays(np.int64, sequences, elements=st.integers(0, 1))),
        token_budget=max(int(tokens.max()), 1) + draw(st.integers(0, 20)),
        max_sequences=draw(st.sampled_from([1, 2, UNLIMITED])),
        attention=draw(
            st.builds(AttentionCost, *(st.sampled_from([0.0, 0.3, 50.0]) for _ in range(2)))
        ),
    )


def bursty_sequences(seed: int, sequences: int, ranks: int, layers: int) -> PackingProblem:
    """Sequences of very unlike routing and length, as real ones are."""
    generator = np.random.default_rng(seed)
    tokens = np.minimum(generator.lognormal(5, 0.8, sequences), 500).astype(np.int64) + 1
    share = generator.dirichlet(np.full(ranks, 0.7), (sequences, layers))
    pairs = np.floor(share * tokens[:, None, None] * 4).astype(np.uint32)
    return PackingProblem(
        tokens=tokens,
        rank_pairs=np.ascontiguousarray(pairs.transpose(0, 2, 1)),
        mini_batch=np.zeros(sequences, np.int64),
        token_budget=600,
    )


def recount(problem: PackingProblem, packing: Packing) -> int:
    """The cost by its definition, one micro-step after the other."""
    layers = problem.rank_pairs.shape[2]
    alpha, beta = problem.attention.alpha, problem.attention.beta
    cost = 0
    for ranks in packing.micro_steps():
        members = [sequence for held in ranks for sequence in held]
        cost += int(problem.rank_pairs[members].sum(axis=0, dtype=np.int64).max(axis=0).sum())
        cost += max(
            sum(
                int(layers * (alpha * tokens + beta * (tokens * tokens)))
                for tokens in map(float, problem.tokens[held])
            )
            for held in ranks
        )
    return cost


def first_fit_micro_steps(tokens: NDArray[np.int64], problem: PackingProblem) -> int:
    """Micro-steps that first fit needs for one mini-batch, in the order of ``tokens``."""
    bins: list[list[int]] = []
    for count in tokens.tolist():
        for held in bins:
            if sum(held) + count <= problem.token_budget and len(held) < problem.max_sequences:
                held.append(count)
                break
        else:
            bins.append([count])
    return -(-len(bins) // problem.ranks)
