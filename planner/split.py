"""The split: which source rank's pairs each replica serves, so that few pairs travel far.

A replica with a quota takes pairs of its expert from the sources in this order:

1. those that originate on the replica's own rank: they need not travel;
2. those of its node, except the home's own: they stay in the node;
3. those of other nodes than the home's: they cross nodes anyway;
4. those of the home's node: at home they would not have crossed;
5. those of the home itself: at home they would not have travelled.

Every class is served for all replicas of the layer before the next one starts, replicas by rank
and slot, sources by rank. What no replica takes stays with the home.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel

CLASSES = 5


@kernel
def split_by_source(
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
    ranks_per_node: int,
) -> NDArray[np.int64]:
    """Pairs each replica serves of each source: int64 ``[L, P_source, P, R]``.

    load: int64 ``[L, P, E]``. home: int32 ``[L, E]``. replica_expert, quota: ``[L, P, R]``; an
    expert's quotas together are at most its load.
    """
    layers, ranks, _ = load.shape
    slots = replica_expert.shape[2]
    tokens = np.zeros((layers, ranks, ranks, slots), np.int64)
    for layer in range(layers):
        left = load[layer].copy()
        missing = quota[layer].copy()
        for distance in range(CLASSES):
            for rank in range(ranks):
                for slot in range(slots):
                    if missing[rank, slot] == 0:
                        continue
                    expert = replica_expert[layer, rank, slot]
                    owner = home[layer, expert]
                    for source in range(ranks):
                        if _distance(source, rank, owner, ranks_per_node) != distance:
                            continue
                        taken = min(missing[rank, slot], left[source, expert])
                        missing[rank, slot] -= taken
                        left[source, expert] -= taken
                        tokens[layer, source, rank, slot] += taken
    return tokens


@kernel
def _distance(source: int, rank: int, owner: int, ranks_per_node: int) -> int:
    """The class of a source for a replica on ``rank`` of an expert at home on ``owner``."""
    if source == rank:
        return 0
    if source == owner:
        return 4
    node = source // ranks_per_node
    if node == rank // ranks_per_node:
        return 1
    if node == owner // ranks_per_node:
        return 3
    return 2
