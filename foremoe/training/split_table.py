"""Which (rank, slot) computes each of a rank's (token, expert) pairs."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Slots:
    """Slot numbering of one layer: a rank's own experts first, then its spare slots.

    Slot ``s`` of rank ``p`` has the global code ``p * per_rank + s``.
    """

    ranks: int
    experts_per_rank: int
    spare_slots: int

    @property
    def per_rank(self) -> int:
        return self.experts_per_rank + self.spare_slots


def local_indices(home: NDArray[np.int32], ranks: int) -> NDArray[np.int64]:
    """Position of each expert of ``home [E]`` among its home's experts, by ascending id."""
    index = np.zeros(len(home), np.int64)
    for rank in range(ranks):
        owned = np.flatnonzero(home == rank)
        index[owned] = np.arange(len(owned))
    return index


def contiguous_home(num_experts: int, ranks: int) -> NDArray[np.int32]:
    """Expert e at rank e * P // E: int32 ``[E]``."""
    return np.repeat(np.arange(ranks, dtype=np.int32), num_experts // ranks)


class SplitTable:
    """One rank's row of a layer's token split, in the form that dispatch looks up.

    The first pairs of an expert (in token order) go to its replicas, up to their quotas and in rank
    order; all others go home. Any actual routing is therefore served, also one that differs from
    the foresight the quotas were made for.
    """

    def __init__(
        self,
        slots: Slots,
        home: NDArray[np.int32],
        replica_expert: NDArray[np.int32] | None = None,
        quota: NDArray[np.int64] | None = None,
    ) -> None:
        """``home [E]``; ``replica_expert [P, R]`` and this rank's ``quota [P, R]``, or neither."""
        hosts: dict[int, list[tuple[int, int]]] = {}
        if replica_expert is not None and quota is not None:
            for rank, slot in zip(*np.nonzero((replica_expert >= 0) & (quota > 0)), strict=True):
                target = int(rank) * slots.per_rank + slots.experts_per_rank + int(slot)
                replicas = hosts.setdefault(int(replica_expert[rank, slot]), [])
                replicas.append((int(quota[rank, slot]), target))
        width = max(map(len, hosts.values()), default=0)
        limit = np.zeros((len(home), width), np.int64)
        code = np.empty((len(home), width + 1), np.int64)
        code[:] = (home * slots.per_rank + local_indices(home, slots.ranks))[:, None]
        for expert, replicas in hosts.items():
            served = 0
            for column, (count, target) in enumerate(replicas):
                served += count
                limit[expert, column] = served
                code[expert, column] = target
            limit[expert, len(replicas) :] = served
        self._limit = torch.from_numpy(limit)
        self._code = torch.from_numpy(code)

    def destinations(self, expert_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs ordered by destination, and each one's slot code.

        expert_ids: int64 ``[pairs]`` (token-major), -1 for a pair that no expert computes.
        Returns ``(pair, code)``, both int64 ``[kept pairs]``: the pair's position in the input and
        its global slot code, sorted by code and then by position.
        """
        limit, code = self._limit.to(expert_ids.device), self._code.to(expert_ids.device)
        if not limit.shape[1]:
            pair = torch.nonzero(expert_ids >= 0).squeeze(1)
            codes, order = code[expert_ids[pair], 0].sort(stable=True)
            return pair[order], codes
        by_expert = torch.argsort(expert_ids, stable=True)
        experts = expert_ids[by_expert]
        kept = experts >= 0
        by_expert, experts = by_expert[kept], experts[kept]
        counts = torch.bincount(experts, minlength=len(code))
        first = torch.cumsum(counts, 0) - counts
        nth = torch.arange(len(experts), device=experts.device) - first[experts]
        column = (nth[:, None] >= limit[experts]).sum(dim=1)
        codes = code[experts, column]
        by_code = torch.argsort(codes, stable=True)
        return by_expert[by_code], codes[by_code]
