"""UltraEP's quotas (arXiv 2606.04101): the least threshold at which a greedy export succeeds.

In plain Python: ``foremoe.planner.baselines_reference``.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part


@kernel
def greedy_replicas(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    ranks: int,
    spare_slots: int,
    width: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replicas int32 and quotas int64 ``[L, P, R]`` for ``expert_tokens, home [L, E]``.

    Each layer bisects for its threshold, from 1% above the mean. An expert's replicas stay among
    the ``width`` consecutive ranks around its home.
    """
    layers, experts = home.shape
    replica_expert = np.full((layers, ranks, spare_slots), -1, np.int32)
    quota = np.zeros((layers, ranks, spare_slots), np.int64)
    held = np.full((ranks, spare_slots), -1, np.int32)
    pieces = np.zeros((ranks, spare_slots), np.int64)
    for layer in range(layers):
        weight = expert_tokens[layer]
        home_load = np.zeros(ranks, np.int64)
        for expert in range(experts):
            home_load[home[layer, expert]] += weight[expert]
        falling = np.argsort(-weight, kind="mergesort")
        low, high = -(-weight.sum() * 101 // (100 * ranks)), home_load.max()
        threshold = low
        while low < high:
            held[:], pieces[:] = -1, 0
            if _export(weight, home[layer], home_load, falling, width, threshold, held, pieces):
                replica_expert[layer], quota[layer] = held, pieces
                high = threshold
            else:
                low = threshold + 1
            threshold = (low + high) // 2
    return replica_expert, quota


@part
def _export(
    weight: NDArray[np.int64],
    home: NDArray[np.int32],
    home_load: NDArray[np.int64],
    falling: NDArray[np.int64],
    width: int,
    threshold: int,
    held: NDArray[np.int32],
    pieces: NDArray[np.int64],
) -> bool:
    """Ranks and their experts by falling load give what they have above the threshold.

    falling: experts ``[E]`` by falling weight. held, pieces: ``[P, R]``, filled from slot 0 on.
    """
    tokens, used = home_load.copy(), np.zeros(len(held), np.int64)
    for donor in np.argsort(-home_load, kind="mergesort"):
        for expert in falling:
            if tokens[donor] <= threshold:
                break
            if home[expert] != donor:
                continue
            left = weight[expert]
            while tokens[donor] > threshold and left > 0:
                target = _emptiest(tokens, threshold, donor, width, expert, held, used)
                if target < 0:
                    break
                piece = min(tokens[donor] - threshold, left, threshold - tokens[target])
                held[target, used[target]], pieces[target, used[target]] = expert, piece
                used[target] += 1
                left -= piece
                tokens[target] += piece
                tokens[donor] -= piece
        if tokens[donor] > threshold:
            return False
    return True


@part
def _emptiest(
    tokens: NDArray[np.int64],
    threshold: int,
    donor: int,
    width: int,
    expert: int,
    held: NDArray[np.int32],
    used: NDArray[np.int64],
) -> int:
    """The emptiest rank near the donor below the threshold that can take the expert, or -1."""
    start = donor // width * width
    best = -1
    for rank in range(start, start + width):
        if rank == donor or tokens[rank] >= threshold or used[rank] == held.shape[1]:
            continue
        if best >= 0 and tokens[rank] >= tokens[best]:
            continue
        if not (held[rank, : used[rank]] == expert).any():
            best = rank
    return best
