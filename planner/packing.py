"""Routing-aware packing: which sequences form which micro-step, and on which rank.

Given sequences with t_s tokens and h_spl (token, expert) pairs for the experts at home on rank p in
layer l, assign each sequence of a mini-batch to a micro-step m and a rank p so as to minimise

    sum_m ( sum_l max_p sum_{s in m} h_spl  +  max_p sum_{s in (m, p)} a_s ),

the pairs of the slowest rank of every layer, all ranks meeting in each, plus attention on the
slowest rank, a_s = L * (alpha * t_s + beta * t_s^2) in pairs (as RoutePack reckons it, arXiv
2608.12146). No rank is given more than ``token_budget`` tokens or ``max_sequences`` sequences in a
micro-step. The experts of a sequence are computed at their homes wherever it is processed, so the
first term asks only who shares a micro-step, the second only which rank has whom.

A mini-batch gets exactly as many micro-steps as the best packing by length alone
(``foremoe.planner.packing_lengths``) needs. The best of those is where the search
(``foremoe.planner.packing_search``) begins, so the result never costs more than any of them.

The certificate: whatever the packing, the slowest rank of layer l computes, over the micro-steps of
a mini-batch, at least max_p sum_s h_spl, and has at least 1 / P of the attention.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.packing_lengths import length_packings
from foremoe.planner.packing_search import search
from foremoe.planner.problem import MAX_PAIRS, check_homes

PROPOSALS = 4000  # for a sequence
MOST_WORK = 2**30  # proposals * ranks * layers in all: a few seconds on one core
UNLIMITED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class AttentionCost:
    """A layer's work on a sequence of t tokens but for its experts, in pairs: alpha t + beta t².

    A pair costs 6 * hidden * expert_intermediate FLOP forward, so alpha is the layer's weights
    outside the routed experts over those of one expert, and beta, for causal attention, is
    2 * heads * head_dim over 6 * hidden * expert_intermediate.
    """

    alpha: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < inf:
                raise InvalidInputError(
                    f"attention {name}: must be a number and not negative, "
                    f"got {getattr(self, name)}"
                )

    def pairs(self, tokens: NDArray[np.int64], layers: int) -> NDArray[np.int64]:
        """Of each sequence, over all layers: ``[S]`` -> int64 ``[S]``.

        Raises InvalidInputError if they are too many to be counted.
        """
        length = tokens.astype(np.float64)
        with np.errstate(over="ignore"):
            pairs = np.floor(layers * (self.alpha * length + self.beta * (length * length)))
        if not pairs.sum() < MAX_PAIRS:
            raise InvalidInputError(
                f"attention: {pairs.sum():.3g} pairs in all, fewer than 2**53 can be packed; "
                "alpha and beta are in pairs of one layer"
            )
        return pairs.astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class PackingProblem:
    """Sequences to be packed.

    tokens: int64 ``[S]``. rank_pairs: uint32 ``[S, P, L]``, see ``rank_pairs``.
    mini_batch: int64 ``[S]``, any numbers; sequences with the same one form a mini-batch.
    token_budget, max_sequences: most a rank is given in one micro-step.

    Raises InvalidInputError when shapes disagree, a value is out of range, or a sequence is longer
    than the budget.
    """

    tokens: NDArray[np.int64]
    rank_pairs: NDArray[np.uint32]
    mini_batch: NDArray[np.int64]
    token_budget: int
    max_sequences: int = UNLIMITED
    attention: AttentionCost = AttentionCost()

    def __post_init__(self) -> None:
        sequences = len(self.tokens)
        for name, dtype, shape in (
            ("tokens", np.int64, (sequences,)),
            ("rank_pairs", np.uint32, (sequences, *self.rank_pairs.shape[1:3])),
            ("mini_batch", np.int64, (sequences,)),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise InvalidInputError(
                    f"{name}: expected {np.dtype(dtype)} {list(shape)}, "
                    f"got {array.dtype} {list(array.shape)}"
                )
        if 0 in self.rank_pairs.shape or self.rank_pairs.ndim != 3:
            raise InvalidInputError(
                "rank_pairs: expected at least one sequence, rank and layer, "
                f"got {list(self.rank_pairs.shape)}"
            )
        for name in ("token_budget", "max_sequences"):
            if not 1 <= getattr(self, name) <= UNLIMITED:
                raise InvalidInputError(
                    f"{name}: must lie in [1, {UNLIMITED}], got {getattr(self, name)}"
                )
        if int(self.tokens.min()) < 0:
            raise InvalidInputError("tokens: negative token counts")
        longest = int(self.tokens.argmax())
        if self.tokens[longest] > self.token_budget:
            raise InvalidInputError(
                f"token_budget: sequence {longest} has {self.tokens[longest]} tokens, the budget "
                f"of a rank is {self.token_budget}; raise it"
            )

    @property
    def ranks(self) -> int:
        return int(self.rank_pairs.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Where every sequence goes, and what that costs in pairs on the slowest ranks.

    micro_step, rank: int64 ``[S]``. mini_batch: int64 ``[M]``, of each micro-step, ascending.
    cost: the sum that packing minimises. length_only_cost: the least among the packings by length
    with as few micro-steps. bound: what no packing with these homes beats.
    """

    ranks: int
    micro_step: NDArray[np.int64]
    rank: NDArray[np.int64]
    mini_batch: NDArray[np.int64]
    cost: int
    length_only_cost: int
    bound: int

    def micro_steps(self) -> list[list[list[int]]]:
        """The sequences of every rank of every micro-step, in ascending order."""
        packed: list[list[list[int]]] = [[[] for _ in range(self.ranks)] for _ in self.mini_batch]
        places = zip(self.micro_step.tolist(), self.rank.tolist(), strict=True)
        for sequence, (micro_step, rank) in enumerate(places):
            packed[micro_step][rank].append(sequence)
        return packed


def rank_pairs(
    histograms: Iterable[NDArray[np.uint32]], home: NDArray[np.int32], ranks: int
) -> NDArray[np.uint32]:
    """Pairs by home rank of their expert: ``[L, E]`` of S sequences -> uint32 ``[S, P, L]``.

    Raises InvalidInputError if a rank has not as many experts as the others, or 2**32 pairs.
    """
    check_homes(home, ranks)
    layers, experts = home.shape
    order = np.argsort(home, axis=1, kind="stable")
    pairs: list[NDArray[np.uint32]] = []
    for histogram in histograms:
        by_rank = np.take_along_axis(histogram, order, axis=1)
        counted = by_rank.reshape(layers, ranks, experts // ranks).sum(axis=2, dtype=np.int64)
        if counted.size and int(counted.max()) >= 2**32:
            raise InvalidInputError(
                f"histograms: sequence {len(pairs)} has 2**32 pairs or more on one rank"
            )
        pairs.append(counted.T.astype(np.uint32))
    return np.array(pairs, np.uint32).reshape(len(pairs), ranks, layers)


def propose_schedule(problem: PackingProblem) -> Packing:
    """Pack every mini-batch, the one with the lowest number first.

    Raises InvalidInputError if there are 2**53 pairs or more.
    """
    sequences, ranks, layers = problem.rank_pairs.shape
    attention = problem.attention.pairs(problem.tokens, layers)
    if not problem.rank_pairs.sum(dtype=np.float64) + attention.sum(dtype=np.float64) < MAX_PAIRS:
        raise InvalidInputError("rank_pairs: fewer than 2**53 pairs can be packed")
    micro_step, rank = np.zeros(sequences, np.int64), np.zeros(sequences, np.int64)
    packed: list[Packing] = []
    done = 0
    for number in np.unique(problem.mini_batch).tolist():
        members = np.flatnonzero(problem.mini_batch == number)
        packing = _pack_mini_batch(problem, attention, members, number)
        micro_step[members] = packing.micro_step + done
        rank[members] = packing.rank
        done += len(packing.mini_batch)
        packed.append(packing)
    return Packing(
        ranks=ranks,
        micro_step=micro_step,
        rank=rank,
        mini_batch=np.concatenate([packing.mini_batch for packing in packed]),
        cost=sum(packing.cost for packing in packed),
        length_only_cost=sum(packing.length_only_cost for packing in packed),
        bound=sum(packing.bound for packing in packed),
    )


def _pack_mini_batch(
    problem: PackingProblem, attention: NDArray[np.int64], members: NDArray[np.int64], number: int
) -> Packing:
    """Pack the sequences ``members``, mini-batch ``number``, into micro-steps counted from 0."""
    brought, padded = _rows(problem, attention, members)
    tokens, attention, pairs = brought[:-1, 0], brought[:-1, 2], padded[:-1]
    sequences, ranks, layers = pairs.shape
    by_length = length_packings(tokens, ranks, problem.token_budget, problem.max_sequences)
    costs = {name: packing_cost(pairs, attention, bins) for name, bins in by_length.items()}
    start = by_length[min(costs, key=lambda name: costs[name])]
    searched = search(
        brought,
        padded,
        start,
        int(start.max()) // ranks + 1,
        problem.token_budget,
        problem.max_sequences,
        min(PROPOSALS, MOST_WORK // (ranks * layers * len(problem.tokens))) * sequences,
    )
    cost, bins = packing_cost(pairs, attention, searched), searched
    if cost > min(costs.values()):  # it may end a threshold above where it began
        cost, bins = min(costs.values()), start
    used, micro_step = np.unique(bins // ranks, return_inverse=True)
    slowest = int(pairs.sum(axis=0, dtype=np.int64).max(axis=0).sum())
    return Packing(
        ranks=ranks,
        micro_step=micro_step,
        rank=bins % ranks,
        mini_batch=np.full(len(used), number, np.int64),
        cost=cost,
        length_only_cost=min(costs.values()),
        bound=slowest + -(-int(attention.sum()) // ranks),
    )


def _rows(
    problem: PackingProblem, attention: NDArray[np.int64], members: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The sequences ``members`` as the search wants them, each with a row of zeros at the end."""
    brought = np.zeros((len(members) + 1, 3), np.int64)
    brought[:-1, 0] = problem.tokens[members]
    brought[:-1, 1] = 1
    brought[:-1, 2] = attention[members]
    padded = np.zeros((len(members) + 1, *problem.rank_pairs.shape[1:]), np.uint32)
    np.take(problem.rank_pairs, members, axis=0, out=padded[:-1], mode="clip")
    return brought, padded


def packing_cost(
    pairs: NDArray[np.uint32], attention: NDArray[np.int64], bins: NDArray[np.int64]
) -> int:
    """What packing minimises, for ``pairs [S, P, L]``, ``attention [S]`` and ``bins [S]``.

    Bin b is rank b % P of micro-step b // P.
    """
    _, ranks, layers = pairs.shape
    micro_steps = int(bins.max()) // ranks + 1
    expert = np.zeros((micro_steps, ranks, layers), np.int64)
    np.add.at(expert, bins // ranks, pairs)
    held = np.zeros(micro_steps * ranks, np.int64)
    np.add.at(held, bins, attention)
    return int(expert.max(axis=1).sum() + held.reshape(micro_steps, ranks).max(axis=1).sum())


def warm_up() -> None:
    """Compile the kernel, or load it from the cache."""
    one = np.ones(1, np.int64)
    propose_schedule(PackingProblem(one, np.ones((1, 1, 1), np.uint32), one, token_budget=1))
