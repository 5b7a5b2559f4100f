"""How one EP group lays out the experts of a model over its ranks."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foremoe.client.rank import RankPlan
from foremoe.planner.problem import Topology, check_homes
from foremoe.training.split_table import Slots, local_indices


@dataclass(frozen=True, slots=True, eq=False)
class GroupLayout:
    """This rank's view of the group: ``layers`` global ids ascending, ``home`` int32 ``[L, E]``."""

    rank: int
    topology: Topology
    layers: tuple[int, ...]
    home: NDArray[np.int32]
    spare_slots: int
    _position: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_homes(self.home, self.topology.ranks)
        self._position.update({layer: i for i, layer in enumerate(self.layers)})

    @property
    def num_experts(self) -> int:
        return int(self.home.shape[1])

    @property
    def slots(self) -> Slots:
        ranks = self.topology.ranks
        return Slots(ranks, self.num_experts // ranks, self.spare_slots)

    def position(self, layer: int) -> int:
        """Index of a global layer id on the layer axis of plans."""
        return self._position[layer]

    def owned(self, layer: int) -> tuple[int, ...]:
        """Experts this rank owns in a layer, ascending."""
        return tuple(np.flatnonzero(self.home[self.position(layer)] == self.rank).tolist())

    def rows(self, layer: int) -> NDArray[np.int64]:
        """Where each expert is in a tensor of all ranks' rows, rank by rank: int64 ``[E]``.

        ``gathered[rows]`` is in logical order, whatever the homes are.
        """
        home, ranks = self.home[self.position(layer)], self.topology.ranks
        rows: NDArray[np.int64] = home.astype(np.int64) * self.slots.experts_per_rank
        return rows + local_indices(home, ranks)

    def fits(self, plan: RankPlan) -> bool:
        """Whether a plan was made for this layout."""
        return self.serves(plan) and np.array_equal(plan.home, self.home)

    def serves(self, plan: RankPlan) -> bool:
        """Whether a plan was made for this model and group; its homes may be others."""
        slots = (len(self.layers), self.topology.ranks, self.spare_slots)
        layers = tuple(plan.layers.tolist())
        return layers == self.layers and plan.replica_expert.shape == slots
