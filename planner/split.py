"""The split: which source rank's pairs each replica serves, so that few pairs travel far.

A replica with a quota takes pairs of its expert from the sources in this order:

1. those that originate on the replica's own rank: they need not travel;
2. those of its node, except the home's own: they stay in the node. In the home's node they would
   with the home as well, so there it takes them for one node's share of its quota only: what
   crosses nodes should come to both alike. In another node they do not travel afar any more: first
   those of the sources that send most afar, as dispatch takes as long as the slowest of them;
3. those of other nodes than the home's: they cross nodes anyway;
4. those of the home's node: at home they would not have crossed; in another node first those of the
   sources that send least afar;
5. those of the home itself: at home they would not have travelled.

Every class is served for all replicas of the layer before the next one starts, replicas by rank
and slot, sources by rank where nothing else is said. What no replica takes stays with the home.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part

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
        far = _sent_afar(load[layer], home[layer], ranks_per_node)
        for distance in range(CLASSES):
            for rank in range(ranks):
                for slot in range(slots):
                    if missing[rank, slot] > 0:
                        expert = replica_expert[layer, rank, slot]
                        owner = home[layer, expert]
                        missing[rank, slot] -= _serve(
                            left[:, expert],
                            tokens[layer, :, rank, slot],
                            missing[rank, slot],
                            distance,
                            rank,
                            owner,
                            ranks_per_node,
                            far,
                        )
    return tokens


@part
def _sent_afar(
    load: NDArray[np.int64], home: NDArray[np.int32], ranks_per_node: int
) -> NDArray[np.int64]:
    """Pairs of each source whose home is in another node: ``[P]``."""
    ranks, experts = load.shape
    far = np.zeros(ranks, np.int64)
    if ranks_per_node == ranks:
        return far
    away = np.zeros(experts, np.int64)  # 1 where the home is in another node
    for start in range(0, ranks, ranks_per_node):
        for expert in range(experts):
            away[expert] = 0 if start <= home[expert] < start + ranks_per_node else 1
        for source in range(start, start + ranks_per_node):
            pairs, sent = load[source], 0
            for expert in range(experts):
                sent += pairs[expert] * away[expert]
            far[source] = sent
    return far


@part
def _serve(
    left: NDArray[np.int64],
    tokens: NDArray[np.int64],
    wanted: int,
    distance: int,
    rank: int,
    owner: int,
    ranks_per_node: int,
    far: NDArray[np.int64],
) -> int:
    """Move up to ``wanted`` pairs of one class from ``left`` to ``tokens``, both [P]; how many."""
    start, home_start = rank - rank % ranks_per_node, owner - owner % ranks_per_node
    if start == home_start:
        if distance == 1:
            wanted = -(-wanted // (len(left) // ranks_per_node))
        return _take(left, tokens, wanted, distance, rank, owner, ranks_per_node)
    if distance == 1:
        return _take_evenly(left, tokens, wanted, start, ranks_per_node, owner, far, -1)
    if distance == 3:
        return _take_evenly(left, tokens, wanted, home_start, ranks_per_node, owner, far, 1)
    taken = _take(left, tokens, wanted, distance, rank, owner, ranks_per_node)
    if distance == 0:
        far[rank] -= taken
    elif distance == 4:
        far[owner] += taken
    return taken


@part
def _take_evenly(
    left: NDArray[np.int64],
    tokens: NDArray[np.int64],
    wanted: int,
    start: int,
    ranks_per_node: int,
    owner: int,
    far: NDArray[np.int64],
    change: int,
) -> int:
    """From a node's sources but the home, so that ``far`` evens out; a pair changes it by one."""
    end, there, taken = start + ranks_per_node, 0, 0
    for source in range(start, end):
        there += left[source] if source != owner else 0
    if there <= wanted:  # all of it
        for source in range(start, end):
            if source != owner:
                taken += _move(left, tokens, far, source, left[source], change)
        return taken
    while taken < wanted:
        first, second = -1, -1
        for source in range(start, end):
            if source == owner or left[source] == 0:
                continue
            if first < 0 or change * far[source] < change * far[first]:
                first, second = source, first
            elif second < 0 or change * far[source] < change * far[second]:
                second = source
        gap = wanted if second < 0 else abs(far[first] - far[second])
        piece = min(wanted - taken, left[first], max(gap, wanted // ranks_per_node, 1))
        taken += _move(left, tokens, far, first, piece, change)
    return taken


@part
def _move(
    left: NDArray[np.int64],
    tokens: NDArray[np.int64],
    far: NDArray[np.int64],
    source: int,
    pairs: int,
    change: int,
) -> int:
    left[source] -= pairs
    tokens[source] += pairs
    far[source] += change * pairs
    return pairs


@part
def _take(
    left: NDArray[np.int64],
    tokens: NDArray[np.int64],
    wanted: int,
    distance: int,
    rank: int,
    owner: int,
    ranks_per_node: int,
) -> int:
    """Move up to ``wanted`` pairs of one class of sources from ``left`` to ``tokens``, both [P]."""
    node_start = rank // ranks_per_node * ranks_per_node
    owner_start = owner // ranks_per_node * ranks_per_node
    if distance == 0:
        start, end = rank, rank + 1
    elif distance == 1:
        start, end = node_start, node_start + ranks_per_node
    elif distance == 2:
        start, end = 0, len(left)
    elif distance == 3:
        start, end = owner_start, owner_start + ranks_per_node
    else:
        start, end = owner, owner + 1
    taken = 0
    for source in range(start, end):
        if distance < 4 and source == owner:
            continue
        if distance == 2 and owner_start <= source < owner_start + ranks_per_node:
            continue
        piece = min(wanted - taken, left[source])
        left[source] -= piece
        tokens[source] += piece
        taken += piece
        if taken == wanted:
            break
    return taken
