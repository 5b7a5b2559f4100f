"""The cost model: what one layer of one micro-step takes, in time.

For a layer whose rank p computes n_ep pairs of expert e, all ranks together take

    compute + dispatch + exposed copies, where

* compute = max_p ( launch + sum_{e: n_ep > 0} max(read, intercept + pair * n_ep) ): a grouped GEMM
  reads the weights of each active expert, which hides the arithmetic of the first few tens of
  pairs, and then grows with every pair.
* dispatch = latency + max over ranks and link classes of pairs * price of the class. Classes are
  pairs that stay on their rank, pairs between ranks of a node, and pairs between nodes; of the
  latter two a rank's link carries those it sends and those it receives at the same time. A price
  is for the way there and back (dispatch and combine). Pairs are an upper bound on what travels: a
  token that goes twice to one rank may travel once.
* copies = max over ranks of what its links carry: replicas from a rank of the node (or from the
  node's host memory, whichever is faster) and from other nodes. What exceeds the window is exposed:
  links are free for copies while ranks compute, on average launch + experts * intercept + mean
  pairs * (pair + other), where other is the model's work outside the experts. In the update stage
  the gradient of every replica travels home as well.

All figures are integer picoseconds, so that estimates, and the plans chosen by them, are the same
on every machine. Where the figures come from: ``foremoe.planner.presets`` and ``preset``.
"""

from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part
from foremoe.planner.plan import Plan

PICOSECONDS = 1e12  # a second


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


@dataclass(frozen=True, slots=True)
class CostModel:
    """Prices of one layer of one stage, in integer picoseconds.

    launch: a rank's grouped GEMM before the first expert.
    read, intercept, pair: an active expert costs max(read, intercept + pair * its pairs).
    other_pair: work outside the experts, for each of a rank's own pairs.
    dispatch_latency: of dispatch and combine, whatever they carry.
    rank_pair, node_pair, far_pair: a pair that stays on its rank, in its node, or leaves it.
    host_copy, peer_copy, network_copy: one expert's weights by path: from the node's host memory,
        from a rank of the node, from another node. Weights that are there already cost nothing.
    near_gradient, far_gradient: one expert's gradient home; 0 in a stage without backward.
    """

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

    @property
    def prices(self) -> Prices:
        return Prices(*astuple(self))


class LayerSeconds(NamedTuple):
    """The parts of a layer's time, float64 ``[L]`` each."""

    compute: NDArray[np.float64]
    dispatch: NDArray[np.float64]
    exposed_copies: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        return self.compute + self.dispatch + self.exposed_copies


def layer_seconds(
    model: CostModel, plan: Plan, ranks_per_node: int, before: Plan | None = None
) -> LayerSeconds:
    """Estimate each layer of a plan's micro-step.

    before: the plan of the micro-step before, whose replicas are still in their slots; without it
    every replica is a copy. For a load without replicas pass a plan whose slots are all empty.
    """
    parts = layer_picoseconds(
        plan.load,
        plan.home,
        plan.replica_expert,
        plan.replica_tokens,
        new_replicas(plan.replica_expert, None if before is None else before.replica_expert),
        ranks_per_node,
        model.prices,
    )
    return LayerSeconds(*(parts / PICOSECONDS).T)


def new_replicas(placed: NDArray[np.int32], before: NDArray[np.int32] | None) -> NDArray[np.bool_]:
    """Which replicas are not on their rank yet: bool, the shape of ``placed [..., P, R]``."""
    if before is None:
        return placed >= 0
    stays = (placed[..., :, None] == before[..., None, :]).any(axis=-1)
    new: NDArray[np.bool_] = (placed >= 0) & ~stays
    return new


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
    """Compute, dispatch and exposed copies: int64 ``[L, 3]``.

    load: int64 ``[L, P, E]``. home: int32 ``[L, E]``. replica_expert, copied: ``[L, P, R]``, the
    replicas and which of them are copies. replica_tokens: int64 ``[L, P_source, P, R]``.
    """
    layers, ranks, experts = load.shape
    result = np.zeros((layers, 3), np.int64)
    left = np.zeros((ranks, experts), np.int64)
    flow = np.zeros((ranks, ranks), np.int64)
    for layer in range(layers):
        left[:] = load[layer]
        flow[:] = 0
        compute = np.full(ranks, prices.launch, np.int64)
        for rank in range(ranks):
            for slot in range(replica_expert.shape[2]):
                if replica_expert[layer, rank, slot] >= 0:
                    served = 0
                    for source in range(ranks):
                        count = replica_tokens[layer, source, rank, slot]
                        left[source, replica_expert[layer, rank, slot]] -= count
                        flow[source, rank] += count
                        served += count
                    compute[rank] += _expert_time(served, prices)
        served_at_home = np.zeros(experts, np.int64)
        for source in range(ranks):
            for expert in range(experts):
                served_at_home[expert] += left[source, expert]
                flow[source, home[layer, expert]] += left[source, expert]
        for expert in range(experts):
            compute[home[layer, expert]] += _expert_time(served_at_home[expert], prices)
        result[layer, 0] = compute.max()
        result[layer, 1] = prices.dispatch_latency + _dispatch_time(flow, ranks_per_node, prices)
        window = prices.launch + experts // ranks * prices.intercept
        window += flow.sum() // ranks * (prices.pair + prices.other_pair)
        copies = _copy_time(
            home[layer], replica_expert[layer], copied[layer], ranks_per_node, prices
        )
        result[layer, 2] = max(copies - window, 0)
    return result


@part
def _expert_time(pairs: int, prices: Prices) -> int:
    return max(prices.read, prices.intercept + prices.pair * pairs) if pairs > 0 else 0


@part
def _dispatch_time(flow: NDArray[np.int64], ranks_per_node: int, prices: Prices) -> int:
    """Of pairs ``[P_source, P]``: the slowest rank and link class."""
    slowest = 0
    for rank in range(len(flow)):
        near_out, near_in, far_out, far_in = 0, 0, 0, 0
        for other in range(len(flow)):
            if other // ranks_per_node != rank // ranks_per_node:
                far_out += flow[rank, other]
                far_in += flow[other, rank]
            elif other != rank:
                near_out += flow[rank, other]
                near_in += flow[other, rank]
        slowest = max(
            slowest,
            flow[rank, rank] * prices.rank_pair,
            max(near_out, near_in) * prices.node_pair,
            max(far_out, far_in) * prices.far_pair,
        )
    return slowest


@part
def _copy_time(
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
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
                near[owner] += prices.near_gradient
            else:
                copy = prices.network_copy if copied[rank, slot] else 0
                far[rank] += copy
                far_sent[owner] += copy
                far[owner] += prices.far_gradient
                far_sent[rank] += prices.far_gradient
    return max(int(near.max()), int(far.max()), int(far_sent.max()))
