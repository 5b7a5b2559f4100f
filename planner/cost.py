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
  the gradient of every replica that computes travels home as well.

All figures are integer picoseconds, so that estimates, and the plans chosen by them, are the same
on every machine. Where the figures come from: ``foremoe.planner.presets`` and ``preset``.
"""

from dataclasses import astuple, dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.plan import Plan
from foremoe.planner.pricing import Prices, layer_picoseconds

PICOSECONDS = 1e12  # a second
MAX_PAIRS = 2**31  # of a layer; with the limits below all products stay in int64
MAX_PAIR_PRICE = 2**29  # half a millisecond
MAX_PRICE = 2**45  # half a minute


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
    near_move, far_move: one expert's parameters and optimizer state to a new home.
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
    near_move: int
    far_move: int

    def __post_init__(self) -> None:
        for field in fields(self):
            price = getattr(self, field.name)
            limit = MAX_PAIR_PRICE if field.name.endswith("pair") else MAX_PRICE
            if not 0 <= price < limit:
                raise InvalidInputError(
                    f"cost model: {field.name} is {price} ps, expected 0 or more and below {limit}"
                )

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
    every replica is a copy.
    Raises InvalidInputError if a layer holds ``MAX_PAIRS`` or more.
    """
    check_pairs(plan.load)
    parts = layer_picoseconds(
        plan.load,
        plan.home,
        plan.replica_expert,
        plan.replica_tokens,
        new_replicas(plan.replica_expert, None if before is None else before.replica_expert),
        ranks_per_node,
        model.prices,
    )
    return LayerSeconds(*(parts[:, 1] / PICOSECONDS).T)


def home_seconds(
    model: CostModel, load: NDArray[np.int64], home: NDArray[np.int32], ranks_per_node: int
) -> LayerSeconds:
    """The same for ``load [L, P, E]`` without replicas, every expert at ``home [L, E]``."""
    layers, ranks, _ = load.shape
    nothing = Plan(
        home=home,
        load=load,
        replica_expert=np.full((layers, ranks, 0), -1, np.int32),
        replica_tokens=np.zeros((layers, ranks, ranks, 0), np.int64),
        bound=np.zeros(layers, np.int64),
    )
    return layer_seconds(model, nothing, ranks_per_node)


def check_pairs(load: NDArray[np.int64]) -> None:
    """Raise InvalidInputError if a layer of ``load [..., P, E]`` is too large to be priced."""
    most = load.sum(axis=(-2, -1), dtype=np.float64).max(initial=0)
    if most >= MAX_PAIRS:
        raise InvalidInputError(
            f"load: a layer holds {most:.3g} pairs; a cost model reckons with fewer than 2**31"
        )


def new_replicas(placed: NDArray[np.int32], before: NDArray[np.int32] | None) -> NDArray[np.bool_]:
    """Which replicas are not on their rank yet: bool, the shape of ``placed [..., P, R]``."""
    if before is None:
        return placed >= 0
    stays = (placed[..., :, None] == before[..., None, :]).any(axis=-1)
    new: NDArray[np.bool_] = (placed >= 0) & ~stays
    return new
