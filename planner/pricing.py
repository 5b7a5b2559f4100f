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


class Traffic(NamedTuple):
    """Pairs of each rank, int64 ``[P]`` each; near is within its node, itself included."""

    own: NDArray[np.int64]
    sent: NDArray[np.int64]
    received: NDArray[np.int64]
    near_sent: NDArray[np.int64]
    near_received: NDArray[np.int64]


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
    layers, ranks, slots = replica_expert.shape
    result = np.zeros((layers, 2, 3), np.int64)
    for layer in range(layers):
        traffic = Traffic(
            np.zeros(ranks, np.int64),
            np.zeros(ranks, np.int64),
            np.zeros(ranks, np.int64),
            np.zeros(ranks, np.int64),
            np.zeros(ranks, np.int64),
        )
        weight = _send_home(load[layer], home[layer], ranks_per_node, traffic)
        quota = np.zeros((ranks, slots), np.int64)
        result[layer, 0, 0] = _compute_time(
            weight, home[layer], replica_expert[layer], quota, prices
        )
        result[layer, 0, 1] = _dispatch_time(traffic, prices)
        _redirect(
            replica_tokens[layer],
            replica_expert[layer],
            home[layer],
            ranks_per_node,
            traffic,
            quota,
        )
        result[layer, 1, 0] = _compute_time(
            weight, home[layer], replica_expert[layer], quota, prices
        )
        result[layer, 1, 1] = _dispatch_time(traffic, prices)
        result[layer, 1, 2] = _exposed_time(
            weight, home[layer], replica_expert[layer], quota, copied[layer], ranks_per_node, prices
        )
    return result


@kernel
def node_picoseconds(
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
    prices: Prices,
) -> NDArray[np.int64]:
    """``layer_picoseconds`` of ranks in one node after ``split_by_source``: int64 ``[L, 3]``.

    load: int64 ``[L, P, E]``. home: int32 ``[L, E]``. replica_expert, quota: ``[L, P, R]``, all
    copied. The split itself is not needed: a replica serves pairs of its own rank first and those
    of its home's last.
    """
    layers, ranks, experts = load.shape
    slots = quota.shape[2]
    result = np.zeros((layers, 3), np.int64)
    for layer in range(layers):
        weight = np.zeros(experts, np.int64)
        sent = np.zeros(ranks, np.int64)
        for source in range(ranks):
            pairs = load[layer, source]
            for expert in range(experts):
                weight[expert] += pairs[expert]
                sent[source] += pairs[expert]
        left = weight.copy()
        received = np.zeros(ranks, np.int64)
        own = np.zeros(ranks, np.int64)
        for rank in range(ranks):
            for slot in range(slots):
                expert = replica_expert[layer, rank, slot]
                if expert >= 0:
                    count = quota[layer, rank, slot]
                    left[expert] -= count
                    received[rank] += count
                    own[rank] += min(count, load[layer, rank, expert])
        for expert in range(experts):
            owner = home[layer, expert]
            received[owner] += left[expert]
            own[owner] += min(left[expert], load[layer, owner, expert])
        result[layer, 0] = _compute_time(
            weight, home[layer], replica_expert[layer], quota[layer], prices
        )
        result[layer, 1] = _dispatch_time(Traffic(own, sent, received, sent, received), prices)
        copied = replica_expert[layer] >= 0
        result[layer, 2] = _exposed_time(
            weight, home[layer], replica_expert[layer], quota[layer], copied, ranks, prices
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
def _send_home(
    load: NDArray[np.int64], home: NDArray[np.int32], ranks_per_node: int, traffic: Traffic
) -> NDArray[np.int64]:
    """Add every pair's way home, of ``load [P, E]`` and ``home [E]``; pairs per expert ``[E]``."""
    ranks, experts = load.shape
    weight = np.zeros(experts, np.int64)
    node_pairs = np.zeros(experts, np.int64)  # that originate in one node
    inside = np.zeros(experts, np.int64)  # 1 where the home is in that node
    for start in range(0, ranks, ranks_per_node):
        end = start + ranks_per_node
        for expert in range(experts):
            node_pairs[expert] = 0
            inside[expert] = 1 if start <= home[expert] < end else 0
        for source in range(start, end):
            pairs = load[source]
            sent, near = 0, 0
            for expert in range(experts):
                node_pairs[expert] += pairs[expert]
                sent += pairs[expert]
                near += pairs[expert] * inside[expert]
            traffic.sent[source] = sent
            traffic.near_sent[source] = near
        for expert in range(experts):
            owner = home[expert]
            weight[expert] += node_pairs[expert]
            traffic.received[owner] += node_pairs[expert]
            if inside[expert]:
                traffic.own[owner] += load[owner, expert]
                traffic.near_received[owner] += node_pairs[expert]
    return weight


@part
def _redirect(
    replica_tokens: NDArray[np.int64],
    replica_expert: NDArray[np.int32],
    home: NDArray[np.int32],
    ranks_per_node: int,
    traffic: Traffic,
    quota: NDArray[np.int64],
) -> None:
    """Send ``replica_tokens [P_source, P, R]`` to the replicas instead; their sums to ``quota``."""
    ranks, slots = replica_expert.shape
    for source in range(ranks):
        start = source // ranks_per_node * ranks_per_node
        for rank in range(ranks):
            for slot in range(slots):
                count = replica_tokens[source, rank, slot]
                if count == 0:
                    continue
                owner = home[replica_expert[rank, slot]]
                quota[rank, slot] += count
                traffic.received[rank] += count
                traffic.received[owner] -= count
                if start <= rank < start + ranks_per_node:
                    traffic.near_sent[source] += count
                    traffic.near_received[rank] += count
                if start <= owner < start + ranks_per_node:
                    traffic.near_sent[source] -= count
                    traffic.near_received[owner] -= count
                if source == rank:
                    traffic.own[rank] += count
                if source == owner:
                    traffic.own[owner] -= count


@part
def _dispatch_time(traffic: Traffic, prices: Prices) -> int:
    """Of the slowest rank and link class."""
    slowest = 0
    for rank in range(len(traffic.own)):
        own = traffic.own[rank]
        near = max(traffic.near_sent[rank], traffic.near_received[rank]) - own
        far = max(
            traffic.sent[rank] - traffic.near_sent[rank],
            traffic.received[rank] - traffic.near_received[rank],
        )
        slowest = max(
            slowest, own * prices.rank_pair, near * prices.node_pair, far * prices.far_pair
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
