"""What the planner is asked: the loads of one stage, where experts live, and the limits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.cost import CostModel, check_pairs

MAX_PAIRS = 2**53  # totals stay exact in float64, and sums of them in int64


@dataclass(frozen=True, slots=True)
class Topology:
    """The ranks of one EP group: ``ranks`` in all, consecutive ``ranks_per_node`` share a node."""

    ranks: int
    ranks_per_node: int

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.ranks_per_node < 1:
            raise InvalidInputError(
                f"topology: ranks and ranks_per_node must be at least 1, "
                f"got {self.ranks} and {self.ranks_per_node}"
            )
        if self.ranks % self.ranks_per_node:
            raise InvalidInputError(
                f"topology: ranks_per_node ({self.ranks_per_node}) must divide ranks ({self.ranks})"
            )

    @property
    def nodes(self) -> int:
        return self.ranks // self.ranks_per_node

    def node_of(self, rank: int) -> int:
        return rank // self.ranks_per_node

    def by_node(self, load: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs that originate in each node: ``[L, P, E]`` -> int64 ``[L, N, E]``."""
        layers, _, experts = load.shape
        pairs: NDArray[np.int64] = load.reshape(
            layers, self.nodes, self.ranks_per_node, experts
        ).sum(axis=2)
        return pairs


@dataclass(frozen=True, slots=True, eq=False)
class StageProblem:
    """One stage of one RL step, all micro-steps known in advance.

    load: int64 ``[M, L, P, E]``, (token, expert) pairs that originate on rank p.
    home: int32 ``[L, E]``, the rank that owns each expert; every rank owns E / P of them.
    mini_batch: int32 ``[M]``, non-decreasing; expert weights change only where it changes.
    spare_slots: R, replicas a rank can hold per layer.
    target: the imbalance that suffices (1.02, say), to be reached with as few copies as possible;
        None asks for the fastest plans under ``cost``, or without that for the best balance.
    cost: prices of compute, dispatch and copies; no layer is planned to be slower than without
        replicas, whatever the target.

    Raises InvalidInputError when shapes disagree or a value is out of range.
    """

    load: NDArray[np.int64]
    home: NDArray[np.int32]
    mini_batch: NDArray[np.int32]
    topology: Topology
    spare_slots: int
    target: float | None = None
    cost: CostModel | None = None

    def __post_init__(self) -> None:
        if self.load.ndim != 4 or self.load.dtype != np.int64 or 0 in self.load.shape[:2]:
            raise InvalidInputError(
                f"load: expected int64 [micro_steps, layers, ranks, experts] of at least one "
                f"micro-step and layer, got {self.load.dtype} {list(self.load.shape)}"
            )
        micro_steps, layers, ranks, experts = self.load.shape
        if ranks != self.topology.ranks:
            raise InvalidInputError(
                f"load: has {ranks} ranks but the topology has {self.topology.ranks}"
            )
        if experts == 0 or experts % ranks:
            raise InvalidInputError(
                f"load: {experts} experts cannot be shared evenly by {ranks} ranks; "
                "choose a number of ranks that divides the number of experts"
            )
        for name in ("load", "home"):  # kernels are compiled for plain writeable arrays
            object.__setattr__(self, name, np.require(getattr(self, name), requirements=("C", "W")))
        if self.load.size and int(self.load.min()) < 0:
            raise InvalidInputError("load: negative token counts")
        check_totals(self.load)
        if self.cost is not None:
            check_pairs(self.load)
        if self.home.shape != (layers, experts) or self.home.dtype != np.int32:
            raise InvalidInputError(
                f"home: expected int32 [{layers}, {experts}], "
                f"got {self.home.dtype} {list(self.home.shape)}"
            )
        check_homes(self.home, ranks)
        if self.mini_batch.shape != (micro_steps,) or np.any(np.diff(self.mini_batch) < 0):
            raise InvalidInputError(
                f"mini_batch: expected {micro_steps} non-decreasing values, one per micro-step"
            )
        if self.spare_slots < 0:
            raise InvalidInputError(f"spare_slots: must not be negative, got {self.spare_slots}")
        if self.target is not None and not 1.0 <= self.target < float("inf"):
            raise InvalidInputError(f"target: an imbalance is at least 1.0, got {self.target}")

    @property
    def micro_steps(self) -> int:
        return int(self.load.shape[0])


def check_totals(load: NDArray[np.int64]) -> None:
    """Raise InvalidInputError if a layer of ``load [M, L, P, E]`` holds ``MAX_PAIRS`` or more."""
    total = load.sum(axis=(2, 3), dtype=np.float64)
    for micro_step, layer in zip(*np.nonzero(total >= MAX_PAIRS), strict=True):
        raise InvalidInputError(
            f"load: micro-step {micro_step}, layer row {layer} holds "
            f"{total[micro_step, layer]:.3g} pairs; fewer than 2**53 can be planned"
        )


def check_homes(home: NDArray[np.int32], ranks: int) -> None:
    """Raise InvalidInputError unless each row of ``home [L, E]`` gives every rank E / P experts."""
    layers, experts = home.shape
    if home.size and (int(home.min()) < 0 or int(home.max()) >= ranks):
        raise InvalidInputError(f"home: ranks must lie in [0, {ranks})")
    for layer in range(layers):
        if np.any(np.bincount(home[layer], minlength=ranks) != experts // ranks):
            raise InvalidInputError(
                f"home: layer row {layer} does not give every rank {experts // ranks} experts"
            )
