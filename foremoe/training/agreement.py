"""The one tiny collective in which the ranks of an EP group agree on what to balance."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from foremoe.client.rank import RankPlan

DIGEST_BYTES = 16


def agree(
    plans: Sequence[RankPlan | None], slots: tuple[int, int, int], group: dist.ProcessGroup
) -> list[NDArray[np.int64] | None]:
    """For each plan, None unless every rank of ``group`` holds the same placement.

    If they do: int64 ``slots [L, P, R]``, how many pairs each replica gets from all ranks by their
    rows of the split, to a power of two for each. A replica that gets none has no gradients to
    return. All ranks pass equally many plans and get the same answer.
    """
    mine = b"".join(_ballot(plan, slots) for plan in plans)
    sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    gathered = [torch.empty_like(sent) for _ in range(group.size())]
    dist.all_gather(gathered, sent, group=group)
    ballots = torch.stack(gathered).view(group.size(), len(plans), -1).numpy()
    return [_count(ballots[:, index], slots) for index in range(len(plans))]


def _ballot(plan: RankPlan | None, slots: tuple[int, int, int]) -> bytes:
    """Digest, and for each replica the bits that its pairs from this rank take, one byte."""
    if plan is None:
        return bytes(DIGEST_BYTES + int(np.prod(slots)))
    bits = np.frexp(plan.replica_tokens.astype(np.float64))[1]
    return plan.digest + bits.astype(np.uint8).tobytes()


def _count(ballots: NDArray[np.uint8], slots: tuple[int, int, int]) -> NDArray[np.int64] | None:
    digests, bits = ballots[:, :DIGEST_BYTES], ballots[:, DIGEST_BYTES:]
    if not digests[0].any() or (digests != digests[0]).any():
        return None
    pairs = (np.int64(1) << bits.astype(np.int64)) >> 1
    total: NDArray[np.int64] = pairs.sum(axis=0).reshape(slots)
    return total
