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


def placed_time(
    origin: list[list[int]],
    home: list[int],
    replicas: Replicas,
    topology: Topology,
    cost: CostModel,
) -> list[int]:
    """A layer's parts before the split, of ``origin[node][expert]`` pairs."""
    width = topology.ranks_per_node
    weight = [sum(row[e] for row in origin) for e in range(len(home))]
    hosts = [[(rank, quota) for rank, held in enumerate(replicas) for f, quota in held if f == e]
             for e in range(len(home))]  # fmt: skip
    for expert, owner in enumerate(home):
        hosts[expert].append((owner, weight[expert] - sum(quota for _, quota in hosts[expert])))
    near, far, sent = [0] * topology.ranks, [0] * topology.ranks, [0] * topology.nodes
    for node in range(topology.nodes):
        for expert, placed in enumerate(hosts):
            here = [(rank, count) for rank, count in placed if topology.node_of(rank) == node]
            served = sum(count for _, count in here)
            kept = min(origin[node][expert], served)
            sent[node] += origin[node][expert] - kept
            for rank, count in here:
                stays = count * kept // served if served else 0
                near[rank] += stays
                far[rank] += count - stays
    slowest = max(
        max(count * (width - 1) // width * cost.node_pair for count in near),
        max(count * cost.far_pair for count in far),
        max(count // width * cost.far_pair for count in sent),
    )
    placed_slots = [[(expert, quota, True) for expert, quota in held] for held in replicas]
    return [
        compute_time(weight, home, replicas, cost),
        slowest,
        exposed_time(weight, home, placed_slots, topology, cost),
    ]
