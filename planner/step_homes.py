"""Homes for a whole step: experts that are hot together apart, hot and cold ones together.

Foresight gives the load of every micro-step of the step before it starts. Let s_mp be the share of
micro-step m that rank p computes without replicas, relative to an even share (so sum_p s_mp = P).
The homes of a layer are chosen to minimise

    sum_m ( sum_p s_mp^2 + sum_n (sum_{p in n} s_mp)^2 / ranks per node ),

the spread over ranks plus the spread over nodes n. Balancing only the step's total load leaves the
fluctuation from micro-step to micro-step, which is most of the imbalance in RL; the squares see it
through the covariance of the experts, which is all they need: with x_me the relative share of
expert e, the sum over m of x_me * x_mf for all e and f.

Starting from the present homes, the two experts whose exchange gains most change places, as long as
an exchange gains at least ``least_gain`` of mean squared deviation per rank and micro-step: moving
an expert's parameters and optimizer state has to pay. All numbers are integers (shares in units of
1/4096), between equals the lowest experts, so the homes are a function of the input.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.kernel import kernel, part

SHARE = 4096  # an even share of one rank
LEAST_GAIN = 0.001


def step_homes(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    ranks: int,
    ranks_per_node: int,
    least_gain: float = LEAST_GAIN,
) -> NDArray[np.int32]:
    """Improve ``home [L, E]`` for the loads ``expert_tokens [M, L, E]`` of a step.

    Returns int32 ``[L, E]``, every rank with as many experts as before. ``least_gain`` 0 takes all
    exchanges that help.
    Raises InvalidInputError if the shapes disagree or ``least_gain`` is negative.
    """
    if expert_tokens.ndim != 3 or expert_tokens.shape[1:] != home.shape:
        raise InvalidInputError(
            f"expert_tokens: expected [micro_steps, {home.shape[0]} layers, {home.shape[1]} "
            f"experts], got {list(expert_tokens.shape)}"
        )
    if not least_gain >= 0:
        raise InvalidInputError(f"least_gain: must not be negative, got {least_gain}")
    limit = int(least_gain * len(expert_tokens) * ranks * SHARE * SHARE)
    improved = np.array(home, np.int32)
    _exchange_homes(np.ascontiguousarray(expert_tokens), improved, ranks, ranks_per_node, limit)
    return improved


def warm_up() -> None:
    """Compile the kernel, or load it from the cache."""
    step_homes(np.ones((1, 1, 2), np.int64), np.array([[0, 1]], np.int32), 2, 2)


@kernel
def _exchange_homes(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    ranks: int,
    ranks_per_node: int,
    limit: int,
) -> None:
    """Exchange homes in place until no exchange gains more than ``limit``."""
    layers, experts = home.shape
    for layer in range(layers):
        product = _products(expert_tokens, layer, ranks)
        # What an expert shares with all experts of a rank, and of a node.
        with_rank = np.zeros((experts, ranks), np.int64)
        with_node = np.zeros((experts, ranks // ranks_per_node), np.int64)
        for expert in range(experts):
            for other in range(experts):
                rank = home[layer, other]
                with_rank[expert, rank] += product[expert, other]
                with_node[expert, rank // ranks_per_node] += product[expert, other]
        while True:
            one, two = _best_exchange(
                product, with_rank, with_node, home[layer], ranks_per_node, limit
            )
            if one < 0:
                break
            rank_one, rank_two = home[layer, one], home[layer, two]
            home[layer, one], home[layer, two] = rank_two, rank_one
            for expert in range(experts):
                change = product[expert, two] - product[expert, one]
                with_rank[expert, rank_one] += change
                with_rank[expert, rank_two] -= change
                with_node[expert, rank_one // ranks_per_node] += change
                with_node[expert, rank_two // ranks_per_node] -= change


@part
def _products(expert_tokens: NDArray[np.int64], layer: int, ranks: int) -> NDArray[np.int64]:
    """Sum over micro-steps of the products of two experts' relative shares: ``[E, E]``."""
    micro_steps, _, experts = expert_tokens.shape
    product = np.zeros((experts, experts), np.int64)
    share = np.zeros(experts, np.int64)
    for micro_step in range(micro_steps):
        total = 0
        for expert in range(experts):
            total += expert_tokens[micro_step, layer, expert]
        unit = (total >> 31) + 1  # keeps the product below 2**63, exact up to 2**31 pairs
        for expert in range(experts):
            tokens = expert_tokens[micro_step, layer, expert] // unit
            share[expert] = tokens * ranks * SHARE // max(total // unit, 1)
        for expert in range(experts):
            if share[expert] > 0:
                for other in range(experts):
                    product[expert, other] += share[expert] * share[other]
    return product


@part
def _best_exchange(
    product: NDArray[np.int64],
    with_rank: NDArray[np.int64],
    with_node: NDArray[np.int64],
    home: NDArray[np.int32],
    ranks_per_node: int,
    limit: int,
) -> tuple[int, int]:
    """The two experts whose exchange gains most; -1 twice if none gains more than ``limit``."""
    best_one, best_two, best_gain = -1, -1, limit
    for one in range(len(home)):
        rank_one = home[one]
        node_one = rank_one // ranks_per_node
        for two in range(one + 1, len(home)):
            rank_two = home[two]
            if rank_one == rank_two:
                continue
            apart = product[one, one] + product[two, two] - 2 * product[one, two]
            gain = 2 * (
                with_rank[one, rank_one]
                - with_rank[one, rank_two]
                + with_rank[two, rank_two]
                - with_rank[two, rank_one]
                - apart
            )
            node_two = rank_two // ranks_per_node
            if node_one != node_two:
                node_gain = 2 * (
                    with_node[one, node_one]
                    - with_node[one, node_two]
                    + with_node[two, node_two]
                    - with_node[two, node_one]
                    - apart
                )
                gain += node_gain // ranks_per_node
            if gain > best_gain:
                best_one, best_two, best_gain = one, two, gain
    return best_one, best_two
