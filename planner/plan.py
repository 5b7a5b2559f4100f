"""A plan: for every layer of one micro-step, the homes, the replicas and the token split."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One micro-step, all layers.

    home: int32 ``[L, E]``.
    load: int64 ``[L, P, E]``, the load the plan was made for.
    replica_expert: int32 ``[L, P, R]``, the expert each spare slot must hold, -1 for none.
    replica_tokens: int64 ``[L, P_source, P, R]``, pairs of that expert from each source rank that
        the replica computes; the rest of the source's pairs goes to the expert's home.
    bound: int64 ``[L]``, a lower bound on the busiest rank's pairs under any plan with these homes
        and spare slots: the plan's certificate.
    """

    home: NDArray[np.int32]
    load: NDArray[np.int64]
    replica_expert: NDArray[np.int32]
    replica_tokens: NDArray[np.int64]
    bound: NDArray[np.int64]

    def rank_tokens(self) -> NDArray[np.int64]:
        """Pairs each rank computes: int64 ``[L, P]``."""
        quota = self.replica_tokens.sum(axis=1)
        return placed_tokens(self.load.sum(axis=1), self.home, self.replica_expert, quota)

    def replicas(self) -> int:
        """Spare slots in use, over all layers and ranks."""
        return int(np.count_nonzero(self.replica_expert >= 0))


def home_tokens(load: NDArray[np.int64], home: NDArray[np.int32]) -> NDArray[np.int64]:
    """Pairs each rank computes without replicas: ``[L, P, E]``, ``home [L, E]`` -> ``[L, P]``."""
    layers, ranks, _ = load.shape
    expert_tokens = load.sum(axis=1)
    tokens = np.zeros((layers, ranks), np.int64)
    np.add.at(tokens, (np.arange(layers)[:, None], home), expert_tokens)
    return tokens


def placed_tokens(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Pairs each rank computes, ``[L, P]``.

    Of ``expert_tokens, home [L, E]`` and ``replica_expert, quota [L, P, R]``.
    """
    tokens: NDArray[np.int64] = quota.sum(axis=2)
    np.add.at(tokens, (np.arange(len(home))[:, None], home), expert_tokens)
    layer, rank, slot = np.nonzero(replica_expert >= 0)
    owner = home[layer, replica_expert[layer, rank, slot]]
    np.subtract.at(tokens, (layer, owner), quota[layer, rank, slot])
    return tokens


def placement_digest(
    step: int,
    stage: str,
    micro_step: int,
    layers: NDArray[np.int32],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
) -> bytes:
    """16 bytes that two ranks share exactly when they hold the same placement for a micro-step.

    The token split is left out: each rank holds only its own row of it, and any row is correct.
    """
    digest = hashlib.blake2b(f"{step}/{stage}/{micro_step}".encode(), digest_size=16)
    for array in (layers, home, replica_expert):
        canonical = np.ascontiguousarray(array, dtype="<i4")
        digest.update(repr(canonical.shape).encode())
        digest.update(canonical.tobytes())
    return digest.digest()
