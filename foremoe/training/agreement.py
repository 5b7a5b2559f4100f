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
) -> list[NDArray[np.bool_] | None]:
    """For each plan, None unless every rank of ``group`` holds the same placement.

    If they do: bool ``slots [L, P, R]``, which replicas get tokens from any rank by its row of the
    split. A replica that gets none has no gradients to return. All ranks pass equally many plans
    and get the same answer.
    """
    mine = b"".join(_ballot(plan, slots) for plan in plans)
    sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    gathered = [torch.empty_like(sent) for _ in range(group.size())]
    dist.all_gather(gathered, sent, group=group)
    ballots = torch.stack(gathered).view(group.size(), len(plans), -1).numpy()
    return [_count(ballots[:, index], slots) for index in range(len(plans))]


def _ballot(plan: RankPlan | None, slots: tuple[int, int, int]) -> bytes:
    """Digest, and a bit for each replica that gets tokens from this rank."""
    if plan is None:
        return bytes(DIGEST_BYTES) + np.packbits(np.zeros(slots, np.bool_)).tobytes()
    return plan.digest + np.packbits(plan.replica_tokens > 0).tobytes()


def _count(ballots: NDArray[np.uint8], slots: tuple[int, int, int]) -> NDArray[np.bool_] | None:
    digests, bits = ballots[:, :DIGEST_BYTES], ballots[:, DIGEST_BYTES:]
    if not digests[0].any() or (digests != digests[0]).any():
        return None
    serving = np.unpackbits(np.bitwise_or.reduce(bits, axis=0), count=int(np.prod(slots)))
    return serving.astype(np.bool_).reshape(slots)
