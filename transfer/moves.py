"""From one home map to another: which expert goes where, in an order that keeps the ranks even.

Every rank owns as many experts after as before, so the moves of a layer form a directed multigraph
in which each rank gives as many experts as it takes. Filled up with loops to the largest number
that a rank gives, it falls apart into that many permutations (Kőnig 1916, as in ``rounds``): rounds
in which a rank gives one expert and takes one, or does neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import ExhaustedError, InvalidInputError
from foremoe.planner.problem import check_homes
from foremoe.transfer.schedule.rounds import rounds


@dataclass(frozen=True, slots=True, order=True)
class Move:
    """Expert ``expert`` leaves rank ``source`` for ``destination``; ``row`` is its layer's row."""

    row: int
    expert: int
    source: int
    destination: int


Round = list[Move]


def plan_moves(old: NDArray[np.int32], new: NDArray[np.int32], ranks: int) -> list[Round]:
    """The rounds that turn the homes ``old [L, E]`` into ``new [L, E]``, layer by layer.

    A round concerns one layer; each rank that gives an expert in it takes one, so the homes are
    valid after every round. A layer has as many rounds as its busiest rank has experts to give,
    fewer cannot do.

    Raises InvalidInputError when the maps differ in shape or do not share the experts evenly.
    """
    if old.shape != new.shape or old.ndim != 2 or new.dtype != np.int32:
        raise InvalidInputError(
            f"home: expected int32 [layers, experts] = {list(old.shape)}, "
            f"got {new.dtype} {list(new.shape)}"
        )
    check_homes(old, ranks)
    check_homes(new, ranks)
    return [dealt for row in range(len(old)) for dealt in _layer_rounds(row, old[row], new[row])]


def _layer_rounds(row: int, old: NDArray[np.int32], new: NDArray[np.int32]) -> list[Round]:
    moves = [
        Move(row, expert, int(old[expert]), int(new[expert]))
        for expert in np.flatnonzero(old != new).tolist()
    ]
    gives = np.bincount([move.source for move in moves], minlength=int(old.max(initial=0)) + 1)
    loops = np.repeat(np.arange(len(gives)), gives.max() - gives).tolist()
    pairs = [(move.source, move.destination) for move in moves] + [(rank, rank) for rank in loops]
    return [[moves[i] for i in dealt if i < len(moves)] for dealt in rounds(pairs)]


def staged_batches(
    dealt: Sequence[Round], expert_bytes: Sequence[int], ranks: int, limit_bytes: int
) -> list[list[Round]]:
    """Cut the rounds into batches whose arrivals fit into ``limit_bytes`` on every rank.

    expert_bytes: what an expert of each layer row weighs, equal on all ranks. The order stays.

    Raises ExhaustedError when a single expert does not fit.
    """
    batches: list[list[Round]] = []
    held = np.full(ranks, limit_bytes + 1, np.int64)
    for moves in dealt:
        nbytes = expert_bytes[moves[0].row]
        if nbytes > limit_bytes:
            raise ExhaustedError(
                f"home moves: one expert with its optimizer state has {nbytes} bytes but staging "
                f"may take {limit_bytes}; raise the limit"
            )
        takers = [move.destination for move in moves]
        if int(held[takers].max()) + nbytes > limit_bytes:
            batches.append([])
            held[:] = 0
        held[takers] += nbytes
        batches[-1].append(moves)
    return batches
