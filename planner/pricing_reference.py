"""The prices of ``foremoe.planner.pricing`` in plain Python: the oracle of its kernels."""

from foremoe.planner.cost import CostModel
from foremoe.planner.problem import Topology

Replicas = list[list[tuple[int, int]]]  # by rank: (expert, quota) in slot order


def compute_time(weight: list[int], home: list[int], replicas: Replicas, cost: CostModel) -> int:
    """Of the slowest rank."""
    left = list(weight)
    times = [cost.launch] * len(replicas)

    def expert_time(pairs: int) -> int:
        return max(cost.read, cost.intercept + cost.pair * pairs) if pairs else 0

    for rank, held in enumerate(replicas):
        for expert, quota in held:
            left[expert] -= quota
            times[rank] += expert_time(quota)
    for expert, owner in enumerate(home):
        times[owner] += expert_time(left[expert])
    return max(times)


def dispatch_time(flow: list[list[int]], topology: Topology, cost: CostModel) -> int:
    """Of ``flow[source][rank]`` pairs: the slowest rank and link class."""
    ranks = range(topology.ranks)
    slowest = 0
    for rank in ranks:
        mates = [r for r in ranks if r != rank and topology.node_of(r) == topology.node_of(rank)]
        others = [r for r in ranks if topology.node_of(r) != topology.node_of(rank)]
        for peers, price in ((mates, cost.node_pair), (others, cost.far_pair)):
            sent, received = sum(flow[rank][r] for r in peers), sum(flow[r][rank] for r in peers)
            slowest = max(slowest, max(sent, received) * price)
        slowest = max(slowest, flow[rank][rank] * cost.rank_pair)
    return cost.dispatch_latency + slowest


def exposed_time(
    weight: list[int],
    home: list[int],
    placed: list[list[tuple[int, int, bool]]],
    topology: Topology,
    cost: CostModel,
) -> int:
    """What the window does not hide; by rank, ``(expert, quota, whether it is a copy)``."""
    near, far, far_sent = ([0] * topology.ranks for _ in range(3))
    for rank, held in enumerate(placed):
        for expert, quota, copied in held:
            owner = home[expert]
            if topology.node_of(owner) == topology.node_of(rank):
                near[rank] += min(cost.host_copy, cost.peer_copy) if copied else 0
                near[owner] += cost.near_gradient if quota else 0
            else:
                copy = cost.network_copy if copied else 0
                far[rank] += copy
                far_sent[owner] += copy
                gradient = cost.far_gradient if quota else 0
                far[owner] += gradient
                far_sent[rank] += gradient
    window = cost.launch + len(home) // topology.ranks * cost.intercept
    window += sum(weight) // topology.ranks * (cost.pair + cost.other_pair)
    return max(max(near + far + far_sent) - window, 0)
