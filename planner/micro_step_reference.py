"""One micro-step planned alone, in plain Python: the oracle of ``foremoe.planner.micro_step``.

What happens between nodes and in which order the levels come is here; the moves inside nodes and
all that one node needs are in ``foremoe.planner.reference``.
"""

from collections.abc import Callable, Iterator
from math import isqrt

import numpy as np

from foremoe.planner import reference
from foremoe.planner.plan import Plan
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.reference import RULES, Draft, Nodes, attempt

Replicas = list[list[tuple[int, int]]]  # by rank: (expert, quota) in slot order


def plan_layer(
    load: list[list[int]],
    home: dict[int, int],
    topology: Topology,
    spare_slots: int,
    bound: int,
    goal: int,
    eagerness: int = 1,
) -> Replicas:
    """Replicas of one layer for ``load[p][e]``; ``goal`` 0 for none."""
    weight = {e: sum(row[e] for row in load) for e in home}

    def flat() -> Replicas:
        return reference.plan_layer(weight, home, topology, spare_slots, bound, goal)

    if topology.nodes == 1:
        return flat()
    width = topology.ranks_per_node
    origin = [
        [sum(load[rank][e] for rank in range(start, start + width)) for e in home]
        for start in range(0, topology.ranks, width)
    ]
    total = sum(weight.values())
    worth = total + 1
    if eagerness:
        mean = isqrt(topology.ranks * topology.nodes * len(home))
        worth = max(total // (mean * eagerness), 1)
    nodes = Nodes(topology, origin, worth)

    def blank() -> Draft:
        return Draft(weight, home, topology, spare_slots)

    reached = _by_level(blank, max(bound, goal), nodes)
    if reached is None:
        alike = blank()
        for rank, held in enumerate(flat()):
            for expert, quota in held:
                alike.give(expert, rank, quota)
        reached = _by_level(blank, max(alike.tokens), nodes) or alike
    return reached.replicas


def _by_level(blank: Callable[[], Draft], threshold: int, nodes: Nodes) -> Draft | None:
    """Between nodes, then inside them; the draft that costs least at the threshold."""
    best = None
    if blank().spare_slots == 0:
        return None
    rounding = _slack(blank(), threshold) < nodes.topology.ranks
    for quarters in RULES:
        if rounding and quarters:
            continue
        draft = blank()
        if quarters:
            between_nodes(draft, threshold, nodes)
        if attempt(draft, threshold, quarters, nodes) and (
            best is None or _cost(draft, nodes) < _cost(best, nodes)
        ):
            best = draft
    return best


def _cost(draft: Draft, nodes: Nodes) -> int:
    cost = 0
    for rank, held in enumerate(draft.replicas):
        node = nodes.topology.node_of(rank)
        for expert, quota in held:
            if nodes.topology.node_of(draft.home[expert]) == node:
                cost += nodes.worth // 4
            else:
                cost += nodes.worth - min(quota, nodes.origin[node][expert])
    return cost


def between_nodes(draft: Draft, threshold: int, nodes: Nodes) -> None:
    """Replicas that keep pairs in their nodes, then those that even the nodes out."""
    if max(draft.tokens) <= threshold:
        return
    origin = [list(row) for row in nodes.origin]
    _near_tokens(draft, threshold, nodes, origin)
    _even_nodes(draft, threshold, nodes, origin)


def _near_tokens(draft: Draft, threshold: int, nodes: Nodes, origin: list[list[int]]) -> None:
    candidates = sorted(
        (-pairs, node, expert)
        for node, row in enumerate(origin)
        for expert, pairs in enumerate(row)
        if pairs >= nodes.worth and nodes.topology.node_of(draft.home[expert]) != node
    )
    budget = _slack(draft, threshold) // 2
    for _, node, expert in candidates:
        above = draft.tokens[draft.home[expert]] - threshold
        wanted = min(draft.left[expert], max(origin[node][expert], above))
        receiver = _receiver(draft, threshold, nodes.groups[node], expert, wanted)
        if receiver is None or wanted < nodes.worth:
            continue
        room = draft.room(receiver, threshold)
        last = len(draft.replicas[receiver]) + 1 == draft.spare_slots
        fair = _fair_part(budget, room, _room(draft, threshold))
        piece = min(wanted, room)
        if last and room - piece > fair:
            piece = min(draft.left[expert], room)
        if piece < nodes.worth or (last and room - piece > fair):
            continue
        budget -= room - piece if last else 0
        _give(draft, nodes, origin, expert, receiver, piece)


def _even_nodes(draft: Draft, threshold: int, nodes: Nodes, origin: list[list[int]]) -> None:
    def tokens(node: int) -> int:
        return sum(draft.tokens[rank] for rank in nodes.groups[node])

    width = nodes.topology.ranks_per_node
    slack = max(_slack(draft, threshold), 0)
    node_threshold = threshold * width - slack // (2 * nodes.topology.nodes)
    while True:
        everywhere = range(nodes.topology.nodes)
        open_nodes = [
            n for n in everywhere if any(draft.room(rank, threshold) for rank in nodes.groups[n])
        ]
        if not open_nodes:
            return
        fullest, emptiest = max(everywhere, key=tokens), min(open_nodes, key=tokens)
        wanted = min(tokens(fullest) - node_threshold, node_threshold - tokens(emptiest))
        if wanted <= 0 or tokens(fullest) <= threshold * width:
            return
        offers = []
        for expert, owner in draft.home.items():
            piece = min(wanted, draft.left[expert])
            receiver = _receiver(draft, threshold, nodes.groups[emptiest], expert, piece)
            if owner in nodes.groups[fullest] and piece > 0 and receiver is not None:
                offers.append((piece, min(piece, origin[emptiest][expert]), -expert, receiver))
        if not offers:
            return
        piece, _, minus, receiver = max(offers)
        room = draft.room(receiver, threshold)
        last = len(draft.replicas[receiver]) + 1 == draft.spare_slots
        fair = _fair_part(_slack(draft, threshold) // 2, room, _room(draft, threshold))
        piece = min(piece, room)
        if last and room - piece > fair:
            piece = min(draft.left[-minus], room)
        _give(draft, nodes, origin, -minus, receiver, piece)


def _receiver(draft: Draft, threshold: int, ranks: range, expert: int, wanted: int) -> int | None:
    """The rank with the tightest room that is enough, else with the largest."""
    room = {
        rank: draft.room(rank, threshold)
        for rank in ranks
        if draft.room(rank, threshold) > 0 and expert not in dict(draft.replicas[rank])
    }
    enough = [rank for rank in room if room[rank] >= wanted]
    if enough:
        return min(enough, key=lambda rank: (room[rank], rank))
    return max(room, key=lambda rank: (room[rank], -rank), default=None)


def _give(
    draft: Draft, nodes: Nodes, origin: list[list[int]], expert: int, receiver: int, piece: int
) -> None:
    draft.give(expert, receiver, piece)
    row = origin[nodes.topology.node_of(receiver)]
    row[expert] = max(row[expert] - piece, 0)


def _fair_part(budget: int, room: int, total: int) -> int:
    unit = (max(budget, total) >> 31) + 1
    return (budget // unit) * (room // unit) // max(total // unit, 1) * unit


def _room(draft: Draft, threshold: int) -> int:
    return sum(draft.room(rank, threshold) for rank in range(draft.topology.ranks))


def _slack(draft: Draft, threshold: int) -> int:
    return threshold * draft.topology.ranks - sum(draft.tokens)


def plan_stage(problem: StageProblem) -> Iterator[Plan]:
    """The policy ``foremoe`` without kernels; for comparison, orders of magnitude slower."""
    micro_steps, layers, ranks, experts = problem.load.shape
    topology, slots = problem.topology, problem.spare_slots
    for m in range(micro_steps):
        replica_expert = np.full((layers, ranks, slots), -1, np.int32)
        replica_tokens = np.zeros((layers, ranks, ranks, slots), np.int64)
        bounds = np.zeros(layers, np.int64)
        for layer in range(layers):
            load = [[int(n) for n in row] for row in problem.load[m, layer]]
            weight = {e: sum(row[e] for row in load) for e in range(experts)}
            home = {e: int(rank) for e, rank in enumerate(problem.home[layer])}
            bound = reference.lower_bound(weight, home, topology, slots)
            goal = reference.goal_tokens(sum(weight.values()), ranks, problem.target)
            replicas = plan_layer(load, home, topology, slots, bound, goal)
            bounds[layer] = bound
            for rank, held in enumerate(replicas):
                for slot, (expert, _) in enumerate(held):
                    replica_expert[layer, rank, slot] = expert
            for place, count in reference.split_layer(load, home, replicas, topology).items():
                replica_tokens[(layer, *place)] = count
        yield Plan(problem.home, problem.load[m], replica_expert, replica_tokens, bounds)
