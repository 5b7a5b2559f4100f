"""What a layer takes in integer picoseconds: the kernels of ``foremoe.planner.cost``."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part


class Prices(NamedTuple):
    """A cost model as kernels see it; the fields of ``CostModel`` in their order."""

    launch: int
    read: int
    intercept: int
    pair: int
    other_pair: int
    dispatch_latency: int
    rank_pair: int
    node_pair: int
    far_pair: int
    host_copy: int
    peer_copy: int
    network_copy: int
    near_gradient: int
    far_gradient: int
    near_move: int
    far_move: int


@kernel
def layer_picoseconds(
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    replica_tokens: NDArray[np.int64],
    copied: NDArray[np.bool_],
    ranks_per_node: int,
    prices: Prices,
) -> NDArray[np.int64]:
    """Compute, dispatch and exposed copies: int64 ``[L, 2, 3]``, without and with the replicas.

    load: int64 ``[L, P, E]``. home: int32 ``[L, E]``. replica_expert, copied: ``[L, P, R]``, the
    replicas and which of them are copies. replica_tokens: int64 ``[L, P_source, P, R]``.
    """
    layers, ranks, experts = load.shape
    slots = replica_expert.shape[2]
    result = np.zeros((layers, 2, 3), np.int64)
    for layer in range(layers):
        flow = np.zeros((ranks, ranks), np.int64)
        weight = np.zeros(experts, np.int64)
        sent = np.zeros(ranks, np.int64)
        received = np.zeros(ranks, np.int64)
        for source in range(ranks):
            for expert in range(experts):
                count = load[layer, source, expert]
                weight[expert] += count
                sent[source] += count
                flow[source, home[layer, expert]] += count
        for expert in range(experts):
            received[home[layer, expert]] += weight[expert]
        quota = np.zeros((ranks, slots), np.int64)
        result[layer, 0, 0] = _compute_time(
            weight, home[layer], replica_expert[layer], quota, prices
        )
        result[layer, 0, 1] = _dispatch_time(flow, sent, received, ranks_per_node, prices)
        for rank in range(ranks):
            for slot in range(slots):
                expert = replica_expert[layer, rank, slot]
                if expert >= 0:
                    for source in range(ranks):
                        count = replica_tokens[layer, source, rank, slot]
                        quota[rank, slot] += count
                        flow[source, home[layer, expert]] -= count
                        flow[source, rank] += count
                    received[home[layer, expert]] -= quota[rank, slot]
                    received[rank] += quota[rank, slot]
        result[layer, 1, 0] = _compute_time(
            weight, home[layer], replica_expert[layer], quota, prices
        )
        result[layer, 1, 1] = _dispatch_time(flow, sent, received, ranks_per_node, prices)
        result[layer, 1, 2] = _exposed_time(
            weight, home[layer], replica_expert[layer], quota, copied[layer], ranks_per_node, prices
        )
    return result


@kernel
def placed_picoseconds(
    origin: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
    prices: Prices,
) -> NDArray[np.int64]:
    """A layer's time as far as it is known before the split: int64 ``[L]``; all are copies.

    origin: int64 ``[L, N, E]``, pairs that originate in each node. home: int32 ``[L, E]``.
    replica_expert, quota: ``[L, P, R]``. In place of the split, a node serves as many of its own
    pairs of an expert as it has room for, its hosts of the expert in equal shares, and a node's
    ranks send alike.
    """
    layers, nodes, experts = origin.shape
    _, ranks, slots = quota.shape
    width = ranks // nodes
    result = np.zeros(layers, np.int64)
    for layer in range(layers):
        weight = origin[layer].sum(axis=0)
        served = np.zeros((nodes, experts), np.int64)
        for expert in range(experts):
            served[home[layer, expert] // width, expert] += weight[expert]
        for rank in range(ranks):
            for slot in range(slots):
                expert = replica_expert[layer, rank, slot]
                if expert >= 0:
                    served[rank // width, expert] += quota[layer, rank, slot]
                    served[home[layer, expert] // width, expert] -= quota[layer, rank, slot]
        result[layer] = _compute_time(
            weight, home[layer], replica_expert[layer], quota[layer], prices
        )
        result[layer] += _unsplit_dispatch_time(
            origin[layer], served, home[layer], replica_expert[layer], quota[layer], prices
        )
        copied = replica_expert[layer] >= 0
        result[layer] += _exposed_time(
            weight, home[layer], replica_expert[layer], quota[layer], copied, width, prices
        )
    return result


@part
def _compute_time(
    weight: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
    prices: Prices,
) -> int:
    """Of the slowest rank: ``weight, home [E]``, ``replica_expert, quota [P, R]``."""
    ranks, slots = quota.shape
    left = weight.copy()
    time = np.full(ranks, prices.launch, np.int64)
    for rank in range(ranks):
        for slot in range(slots):
            if quota[rank, slot] > 0:
                left[replica_expert[rank, slot]] -= quota[rank, slot]
                time[rank] += _expert_time(quota[rank, slot], prices)
    for expert in range(len(left)):
        time[home[expert]] += _expert_time(left[expert], prices)
    return int(time.max())


@part
def _expert_time(pairs: int, prices: Prices) -> int:
    return max(prices.read, prices.intercept + prices.pair * pairs) if pairs > 0 else 0


@part
def _unsplit_dispatch_time(
    origin: NDArray[np.int64],
    served: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
    prices: Prices,
) -> int:
    """Of ``origin, served [N, E]``: pairs that originate and that are computed in each node."""
    ranks, slots = quota.shape
    nodes, experts = origin.shape
    width = ranks // nodes
    near = np.zeros(ranks, np.int64)  # pairs that a rank receives
    far = np.zeros(ranks, np.int64)
    slowest = 0
    left = served.copy()
    for rank in range(ranks):
        for slot in range(slots):
            if quota[rank, slot] > 0:
                expert, node = replica_expert[rank, slot], rank // width
                kept = min(origin[node, expert], served[node, expert])
                stays = quota[rank, slot] * kept // served[node, expert]
                near[rank] += stays
                far[rank] += quota[rank, slot] - stays
                left[node, expert] -= quota[rank, slot]
    for node in range(nodes):
        sent = 0
        for expert in range(experts):
            kept = min(origin[node, expert], served[node, expert])
            sent += origin[node, expert] - kept
            owner = home[expert]
            if owner // width == node and left[node, expert] > 0:
                stays = left[node, expert] * kept // served[node, expert]
                near[owner] += stays
                far[owner] += left[node, expert] - stays
        slowest = max(slowest, sent // width * prices.far_pair)
    for rank in range(ranks):
        from_others = near[rank] * (width - 1) // width
        slowest = max(slowest, from_others * prices.node_pair, far[rank] * prices.far_pair)
    return slowest


@part
def _dispatch_time(
    flow: NDArray[np.int64],
    sent: NDArray[np.int64],
    received: NDArray[np.int64],
    ranks_per_node: int,
    prices: Prices,
) -> int:
    """Of pairs ``[P_source, P]`` and their sums ``[P]``: the slowest rank and link class."""
    ranks = len(flow)
    slowest = 0
    for rank in range(ranks):
        own = flow[rank, rank]
        near_sent, near_received = -own, -own
        start = rank // ranks_per_node * ranks_per_node
        for other in range(start, start + ranks_per_node):
            near_sent += flow[rank, other]
            near_received += flow[other, rank]
        far = max(sent[rank] - near_sent, received[rank] - near_received) - own
        slowest = max(
            slowest,
            own * prices.rank_pair,
            max(near_sent, near_received) * prices.node_pair,
            far * prices.far_pair,
        )
    return prices.dispatch_latency + slowest


@part
def _exposed_time(
    weight: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
    copied: NDArray[np.bool_],
    ranks_per_node: int,
    prices: Prices,
) -> int:
    """What the window does not hide of the copies."""
    ranks = len(replica_expert)
    window = prices.launch + len(home) // ranks * prices.intercept
    window += int(weight.sum()) // ranks * (prices.pair + prices.other_pair)
    return max(_copy_time(home, replica_expert, quota, copied, ranks_per_node, prices) - window, 0)


@part
def _copy_time(
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
    copied: NDArray[np.bool_],
    ranks_per_node: int,
    prices: Prices,
) -> int:
    """Of the busiest link: weights in and out of each rank, and gradients the other way."""
    ranks, slots = replica_expert.shape
    near_copy = min(prices.host_copy, prices.peer_copy)
    near = np.zeros(ranks, np.int64)  # what a rank receives
    far = np.zeros(ranks, np.int64)
    far_sent = np.zeros(ranks, np.int64)
    for rank in range(ranks):
        for slot in range(slots):
            expert = replica_expert[rank, slot]
            if expert < 0:
                continue
            owner = home[expert]
            if owner // ranks_per_node == rank // ranks_per_node:
                near[rank] += near_copy if copied[rank, slot] else 0
                near[owner] += prices.near_gradient if quota[rank, slot] > 0 else 0
            else:
                copy = prices.network_copy if copied[rank, slot] else 0
                gradient = prices.far_gradient if quota[rank, slot] > 0 else 0
                far[rank] += copy
                far_sent[owner] += copy
                far[owner] += gradient
                far_sent[rank] += gradient
    return max(int(near.max()), int(far.max()), int(far_sent.max()))
