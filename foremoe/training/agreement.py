"""The one tiny collective in which the ranks of an EP group agree on what to balance."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

DIGEST_BYTES = 16


def agree(digests: Sequence[bytes | None], group: dist.ProcessGroup) -> list[bool]:
    """For each digest, whether every rank of ``group`` gave that same one.

    None says that this rank holds no plan. All ranks pass equally many and get the same answer.
    """
    mine = b"".join(digest or bytes(DIGEST_BYTES) for digest in digests)
    sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    gathered = [torch.empty_like(sent) for _ in range(group.size())]
    dist.all_gather(gathered, sent, group=group)
    ranks = torch.stack(gathered).view(group.size(), len(digests), DIGEST_BYTES)
    same = (ranks == ranks[0]).all(dim=2).all(dim=0) & ranks[0].any(dim=1)
    answer: list[bool] = same.tolist()
    return answer
