"""The planner's problem solved to optimality on small instances: integer programs for HiGHS.

As foremoe.planner.replicas poses it: y_ep says whether rank p holds a replica of expert e (not at
home there), x_ep how many of its w_e pairs the replica computes, the rest stays at home. No rank
holds more than R replicas, and x_ep <= w_e * y_ep. With H_p the pairs of rank p's home experts,

    rank p computes  H_p - sum_{e at home on p, q} x_eq + sum_e x_ep.

``least_busiest`` minimises the busiest rank, ``fewest_replicas`` the replicas under a limit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array


@dataclass(frozen=True)
class Instance:
    """One layer: pairs ``weight [E]`` and ``home [E]`` on ``ranks`` ranks of ``spare_slots``."""

    weight: NDArray[np.int64]
    home: NDArray[np.int32]
    ranks: int
    spare_slots: int

    @property
    def places(self) -> list[tuple[int, int]]:
        """(expert, rank) wherever a replica may be."""
        return [
            (expert, rank)
            for expert, owner in enumerate(self.home)
            for rank in range(self.ranks)
            if rank != owner
        ]


def least_busiest(instance: Instance) -> int:
    """Pairs on the busiest rank in the best of all plans."""
    solution = _solve(instance, most=None)
    assert solution is not None
    return solution


def fewest_replicas(instance: Instance, most: int) -> int | None:
    """Replicas that keep every rank at ``most`` pairs or below; None if nothing does."""
    return _solve(instance, most)


def _solve(instance: Instance, most: int | None) -> int | None:
    """Variables: x, then y in the order of ``places``, then the busiest rank if it is sought."""
    places, experts = instance.places, len(instance.weight)
    count, weight = len(places), instance.weight
    columns = 2 * count + 1
    rank_rows = lil_array((instance.ranks, columns))
    slot_rows = lil_array((instance.ranks, columns))
    expert_rows = lil_array((experts, columns))
    link_rows = lil_array((count, columns))
    for index, (expert, rank) in enumerate(places):
        rank_rows[rank, index] += 1
        rank_rows[instance.home[expert], index] -= 1
        slot_rows[rank, count + index] = 1
        expert_rows[expert, index] = 1
        link_rows[index, index] = 1
        link_rows[index, count + index] = -int(weight[expert])
    at_home = np.bincount(instance.home, weight, minlength=instance.ranks)
    objective = np.zeros(columns)
    upper = np.full(columns, float(weight.sum()))
    upper[count:-1] = 1
    if most is None:
        objective[-1] = 1
        rank_rows[:, [-1]] = -1
        limit = -at_home
    else:
        objective[count:-1] = 1
        limit = most - at_home
    result = milp(
        objective,
        integrality=np.ones(columns),
        bounds=Bounds(0, upper),
        constraints=[
            LinearConstraint(rank_rows.tocsr(), ub=limit),
            LinearConstraint(slot_rows.tocsr(), ub=instance.spare_slots),
            LinearConstraint(expert_rows.tocsr(), ub=weight),
            LinearConstraint(link_rows.tocsr(), ub=0),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if result.status == 2:  # infeasible
        return None
    assert result.status == 0, result.message
    return round(result.fun)
