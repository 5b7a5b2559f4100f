"""What a plan reached beside what could be reached: three lower bounds on the busiest rank.

Whatever the homes, replicas and quotas, the busiest rank computes at least

* mean: the pairs of all ranks, shared evenly and rounded up;
* fixed homes: what R spare slots per rank can take off the ranks above the mean, with every expert
  at its home (``foremoe.planner.bound``; never below the mean);

and if replicas stay in the node of their home, at least

* topology: the mean of the fullest node, rounded up. A plan below it has moved pairs across nodes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.plan import Plan, home_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """Pairs on the busiest rank, int64 ``[L]`` each: three lower bounds and what a plan reached."""

    mean: NDArray[np.int64]
    topology: NDArray[np.int64]
    fixed_homes: NDArray[np.int64]
    achieved: NDArray[np.int64]

    @property
    def gap(self) -> NDArray[np.float64]:
        """Achieved / fixed homes - 1: ``[L]``, 0.01 is 1% above; 0 where there are no pairs."""
        return self.achieved / np.maximum(self.fixed_homes, 1) - (self.fixed_homes > 0)


def certificate(plan: Plan, ranks_per_node: int) -> Certificate:
    """The certificate of every layer of a plan."""
    tokens = home_tokens(plan.load, plan.home)
    layers, ranks = tokens.shape
    node_tokens = tokens.reshape(layers, ranks // ranks_per_node, ranks_per_node).sum(axis=2)
    return Certificate(
        mean=-(-tokens.sum(axis=1) // ranks),
        topology=-(-node_tokens.max(axis=1) // ranks_per_node),
        fixed_homes=plan.bound,
        achieved=plan.rank_tokens().max(axis=1),
    )
