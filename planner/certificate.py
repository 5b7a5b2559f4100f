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

from foremoe.planner.kernel import kernel
from foremoe.planner.plan import Plan


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
    quota = plan.replica_tokens.sum(axis=1)
    at_home, computed = _rank_tokens(plan.load.sum(axis=1), plan.home, plan.replica_expert, quota)
    layers, ranks = at_home.shape
    node_tokens = at_home.reshape(layers, ranks // ranks_per_node, ranks_per_node).sum(axis=2)
    return Certificate(
        mean=-(-at_home.sum(axis=1) // ranks),
        topology=-(-node_tokens.max(axis=1) // ranks_per_node),
        fixed_homes=plan.bound,
        achieved=computed.max(axis=1),
    )


@kernel
def _rank_tokens(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs each rank would compute without replicas, and computes: ``[L, P]`` both."""
    layers, ranks, slots = quota.shape
    at_home = np.zeros((layers, ranks), np.int64)
    computed = np.zeros((layers, ranks), np.int64)
    for layer in range(layers):
        for expert in range(home.shape[1]):
            at_home[layer, home[layer, expert]] += expert_tokens[layer, expert]
        for rank in range(ranks):
            computed[layer, rank] += at_home[layer, rank]
            for slot in range(slots):
                tokens = quota[layer, rank, slot]
                if tokens:
                    computed[layer, rank] += tokens
                    computed[layer, home[layer, replica_expert[layer, rank, slot]]] -= tokens
    return at_home, computed
