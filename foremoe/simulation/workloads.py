"""Named routing workloads: a function of workload, seed and micro-step only.

W0 to W7 carry the names of the public Megatron-LM token-imbalance benchmark
(github.com/NVIDIA/Megatron-LM/pull/7488); each isolates one cause of imbalance. ``dirichlet`` is
calibrated on recorded routing: a layer's heat is one draw with concentration 0.8 for each expert
(the variance of Qwen3-30B-A3B's heat), a sequence's one draw around it with concentration 36 in all
(the over-dispersion of gpt-oss-20b's sequences).

A sequence's counts are of tokens that each meet ``top_k`` different experts: no expert has more
pairs than the sequence has tokens, and all pairs together are ``tokens * top_k``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError

HEAT_CONCENTRATION = 0.8  # for each expert
SEQUENCE_CONCENTRATION = 36.0  # in all
HOT_FACTOR = 6.0  # heat of a hot expert, others have 1
HOT_SHARE = 8  # one expert in so many is hot
BURST_PERIOD = 8  # micro-steps
RAGGED_SIGMA = 1.0  # of the logarithm of a rank's tokens
_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """What a micro-step has: on each of ``ranks``, ``sequences`` that share ``tokens``."""

    layers: int
    experts: int
    top_k: int
    ranks: int
    tokens: int
    sequences: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.sequences <= max(self.tokens, 1):
            raise InvalidInputError(
                f"workload: {self.tokens} tokens of a rank cannot be {self.sequences} sequences"
            )
        if not 1 <= self.top_k <= self.experts or self.tokens < 1 or self.ranks < 1:
            raise InvalidInputError(
                f"workload: cannot draw top {self.top_k} of {self.experts} experts for "
                f"{self.tokens} tokens on {self.ranks} ranks"
            )


Heat = Callable[[Shape, int, int], NDArray[np.float64]]


def micro_step_load(name: str, shape: Shape, seed: int, micro_step: int) -> NDArray[np.int64]:
    """Pairs by layer, source rank and expert: int64 ``[L, P, E]``.

    Raises InvalidInputError for a name that is not in ``WORKLOADS``.
    """
    if name not in WORKLOADS:
        raise InvalidInputError(f"workload {name!r}: choose one of {', '.join(WORKLOADS)}")
    heat = WORKLOADS[name](shape, seed, micro_step)
    generator = _generator(name, seed, micro_step)
    if name == "dirichlet":
        return _sequences(heat, shape, generator)
    tokens = np.full(shape.ranks, shape.tokens, np.int64)
    if name == "W4_source_ragged":
        ragged = generator.lognormal(0.0, RAGGED_SIGMA, shape.ranks)
        total = shape.tokens * shape.ranks
        tokens = np.maximum((ragged / ragged.sum() * total).astype(np.int64), 1)
    if name == "W0_balanced":
        return _evenly(shape, tokens)
    load = np.empty((shape.layers, shape.ranks, shape.experts), np.int64)
    for layer in range(shape.layers):
        share = np.broadcast_to(heat[layer] / heat[layer].sum(), load[layer].shape)
        load[layer] = _counts(generator, share, tokens, shape.top_k)
    return load


def heat_load(
    heat: NDArray[np.float64], shape: Shape, seed: int, micro_step: int
) -> NDArray[np.int64]:
    """As ``dirichlet`` draws, around a recorded ``heat [layers, E]``: int64 ``[L, P, E]``.

    A model of more layers goes through those of the heat again.
    Raises InvalidInputError when the heat is of another number of experts.
    """
    if heat.ndim != 2 or heat.shape[1] != shape.experts or not (heat.sum(axis=1) > 0).all():
        raise InvalidInputError(
            f"heat: expected tokens by layer and {shape.experts} experts, got {list(heat.shape)}"
        )
    rows = np.maximum(heat[np.arange(shape.layers) % len(heat)], 1e-3)
    return _sequences(rows, shape, _generator("heat", seed, micro_step))


def _sequences(
    heat: NDArray[np.float64], shape: Shape, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Each sequence with its own taste around the layer's heat."""
    load = np.empty((shape.layers, shape.ranks, shape.experts), np.int64)
    lengths = np.diff(np.arange(shape.sequences + 1) * shape.tokens // shape.sequences)
    tokens = np.tile(lengths, shape.ranks)
    for layer in range(shape.layers):
        concentration = heat[layer] / heat[layer].sum() * SEQUENCE_CONCENTRATION
        taste = generator.dirichlet(concentration, len(tokens))
        counts = _counts(generator, taste, tokens, shape.top_k)
        load[layer] = counts.reshape(shape.ranks, shape.sequences, -1).sum(axis=1)
    return load


def _generator(name: str, seed: int, micro_step: int) -> np.random.Generator:
    return np.random.default_rng([crc32(name.encode()), seed, micro_step])


def _counts(
    generator: np.random.Generator,
    share: NDArray[np.float64],
    tokens: NDArray[np.int64],
    top_k: int,
) -> NDArray[np.int64]:
    """Sequences' pairs by expert, ``share [S, E]`` and ``tokens [S]`` -> ``[S, E]``.

    Those above a sequence's tokens go to other experts.
    """
    counts = np.zeros(share.shape, np.int64)
    left = tokens * top_k
    limit = tokens[:, None]
    for _ in range(_DRAWS):
        room = np.where(counts < limit, share, 0.0)
        total = room.sum(axis=1, keepdims=True)
        drawn = np.where(total[:, 0] > 0, left, 0)
        if not drawn.any():
            break
        counts += generator.multinomial(drawn, room / np.where(total > 0, total, 1.0))
        left = left - drawn + np.maximum(counts - limit, 0).sum(axis=1)
        counts = np.minimum(counts, limit)
    for row in np.flatnonzero(left):  # what is left fills the hottest with room
        for expert in np.argsort(-share[row], kind="stable"):
            taken = min(left[row], tokens[row] - counts[row, expert])
            counts[row, expert] += taken
            left[row] -= taken
    return counts


def _evenly(shape: Shape, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every expert gets the same number of pairs, to one."""
    pairs = tokens * shape.top_k
    counts = np.broadcast_to((pairs // shape.experts)[:, None], (shape.ranks, shape.experts)).copy()
    first = np.cumsum(pairs) - pairs
    for rank, (rest, start) in enumerate(zip(pairs % shape.experts, first, strict=True)):
        counts[rank, (start + np.arange(rest)) % shape.experts] += 1
    return np.broadcast_to(counts, (shape.layers, *counts.shape)).copy()


def _even_heat(shape: Shape, seed: int, micro_step: int) -> NDArray[np.float64]:
    del seed, micro_step
    return np.ones((shape.layers, shape.experts))


def _heat_at(shape: Shape, hot: NDArray[np.int64]) -> NDArray[np.float64]:
    heat = np.ones((shape.layers, shape.experts))
    heat[:, hot % shape.experts] = HOT_FACTOR
    return heat


def _hot_set(shape: Shape, seed: int, micro_step: int) -> NDArray[np.float64]:
    del micro_step
    chosen = np.random.default_rng([1, seed]).permutation(shape.experts)
    return _heat_at(shape, chosen[: _hot(shape)])


def _hot_rank(shape: Shape, seed: int, micro_step: int) -> NDArray[np.float64]:
    del seed, micro_step
    return _heat_at(shape, np.arange(_hot(shape)))


def _spread_hot(shape: Shape, seed: int, micro_step: int) -> NDArray[np.float64]:
    del seed, micro_step
    return _heat_at(shape, np.arange(_hot(shape)) * shape.experts // _hot(shape))


def _zero_rank(shape: Shape, seed: int, micro_step: int) -> NDArray[np.float64]:
    del seed, micro_step
    heat = np.ones((shape.layers, shape.experts))
    heat[:, shape.experts - min(_hot(shape), shape.experts - shape.top_k) :] = 0.0
    return heat


def _rotating(shape: Shape, seed: int, micro_step: int) -> NDArray[np.float64]:
    return _heat_at(shape, np.arange(_hot(shape)) + (seed + micro_step) * _hot(shape))


def _burst(shape: Shape, seed: int, micro_step: int) -> NDArray[np.float64]:
    if (micro_step + 1) % BURST_PERIOD:
        return _even_heat(shape, seed, micro_step)
    return _hot_rank(shape, seed, micro_step)


def _drawn(shape: Shape, seed: int, micro_step: int) -> NDArray[np.float64]:
    del micro_step
    generator = np.random.default_rng([2, seed])
    heat = generator.gamma(HEAT_CONCENTRATION, size=(shape.layers, shape.experts))
    drawn: NDArray[np.float64] = np.maximum(heat, 1e-6)
    return drawn


def _hot(shape: Shape) -> int:
    return max(1, shape.experts // HOT_SHARE)


WORKLOADS: dict[str, Heat] = {
    "W0_balanced": _even_heat,
    "W1_hot_expert_set": _hot_set,
    "W2_hot_rank": _hot_rank,
    "W3_spread_hot_experts": _spread_hot,
    "W4_source_ragged": _even_heat,
    "W5_zero_expert_rank": _zero_rank,
    "W6_rotating_hotspot": _rotating,
    "W7_burst": _burst,
    "dirichlet": _drawn,
}
