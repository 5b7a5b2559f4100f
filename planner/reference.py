"""The planner's algorithm in plain Python, readable from top to bottom, and the kernels' oracle.

Everything here is dicts, lists and integers; nothing is compiled and nothing is shared with the
kernels, yet every plan equals theirs byte for byte. Start at ``plan_layer``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor

import numpy as np

from foremoe.planner.plan import Plan
from foremoe.planner.problem import StageProblem, Topology

# As in foremoe.planner.replicas: quarters of the slack a match may waste, own node first.
RULES = [(2, True), (2, False), (4, False), (0, False)]
JUDGE = (0, False)


@dataclass
class Draft:
    """A placement of one layer under construction."""

    weight: dict[int, int]  # pairs per expert
    home: dict[int, int]
    topology: Topology
    spare_slots: int
    tokens: list[int] = field(default_factory=list)  # pairs each rank computes
    left: dict[int, int] = field(default_factory=dict)  # pairs still with the home
    replicas: list[list[tuple[int, int]]] = field(default_factory=list)  # (expert, quota) by rank

    def __post_init__(self) -> None:
        ranks = range(self.topology.ranks)
        self.left = dict(self.weight)
        self.replicas = [[] for _ in ranks]
        self.tokens = [sum(self.weight[e] for e in self.local(rank)) for rank in ranks]

    def local(self, rank: int) -> list[int]:
        return [expert for expert, owner in self.home.items() if owner == rank]

    def largest(self, rank: int) -> int:
        return min(self.local(rank), key=lambda expert: (-self.left[expert], expert))

    def has_free_slot(self, rank: int) -> bool:
        return len(self.replicas[rank]) < self.spare_slots

    def near(self, one: int, other: int) -> bool:
        return self.topology.node_of(one) == self.topology.node_of(other)

    def give(self, donor: int, receiver: int, piece: int) -> None:
        expert = self.largest(donor)
        self.replicas[receiver].append((expert, piece))
        self.left[expert] -= piece
        self.tokens[receiver] += piece
        self.tokens[donor] -= piece

    def cost(self) -> tuple[int, int]:
        """Replicas, and how many of them lie outside their home's node."""
        placed = [(rank, e) for rank, held in enumerate(self.replicas) for e, _ in held]
        return len(placed), sum(not self.near(rank, self.home[e]) for rank, e in placed)


def plan_layer(
    weight: dict[int, int],
    home: dict[int, int],
    topology: Topology,
    spare_slots: int,
    bound: int,
    goal: int,
) -> list[list[tuple[int, int]]]:
    """Replicas of one layer: for each rank, (expert, quota) in slot order; ``goal`` 0 for none."""

    def blank() -> Draft:
        return Draft(weight, home, topology, spare_slots)

    def cheapest(threshold: int, best: Draft | None) -> Draft | None:
        for quarters, near_first in RULES:
            if near_first and topology.nodes == 1:
                continue
            if quarters == 0 and best:
                continue
            draft = blank()
            reached = attempt(draft, threshold, quarters, near_first)
            if reached and (best is None or draft.cost() < best.cost()):
                best = draft
        return best

    # Nothing to do: no slots, or home alone is as good as it can or need be.
    without = blank()
    if spare_slots == 0 or max(without.tokens) <= max(bound, goal):
        return without.replicas

    # With a goal: any rule that reaches it will do.
    if goal:
        reached_goal = cheapest(max(bound, goal), None)
        if reached_goal:
            return reached_goal.replicas

    # Otherwise bisect for the lowest threshold, starting at the lower bound, by pulls alone.
    best = None
    low, high = max(bound, goal + 1), max(without.tokens)
    threshold = low
    while low < high:
        draft = blank()
        reached = attempt(draft, threshold, *JUDGE)
        if max(draft.tokens) < high:
            best, high = draft, max(draft.tokens)
        if not reached:
            low = threshold + 1
        threshold = (low + high) // 2

    # At that threshold take the draft with the fewest replicas.
    if best is None:
        return without.replicas
    best = cheapest(high, best)
    assert best is not None
    return best.replicas


def attempt(draft: Draft, threshold: int, quarters: int, near_first: bool) -> bool:
    """Move pieces until no rank is above the threshold; False if that is impossible."""
    while any(count > threshold for count in draft.tokens):
        donors = [rank for rank, count in enumerate(draft.tokens) if count > threshold]
        receivers = [
            rank
            for rank, count in enumerate(draft.tokens)
            if count < threshold and draft.has_free_slot(rank)
        ]
        need = {rank: draft.tokens[rank] - threshold for rank in donors}
        room = {rank: threshold - draft.tokens[rank] for rank in receivers}
        slack = sum(room.values()) - sum(need.values())
        if slack < 0 or not receivers:
            return False
        may_match = quarters > 0 and slack >= draft.topology.ranks
        if not (may_match and _match(draft, need, room, slack * quarters // 4, near_first)):
            _pull(draft, need, room, near_first)
    return True


def _match(
    draft: Draft, need: dict[int, int], room: dict[int, int], most_waste: int, near_first: bool
) -> bool:
    """Settle one donor with one receiver: own node first if asked, then the least waste."""
    pairs = [
        (
            not (near_first and draft.near(donor, receiver)),
            room[receiver] - need[donor],
            donor,
            receiver,
        )
        for donor in need
        for receiver in room
        if 0 <= room[receiver] - need[donor] <= most_waste
        and draft.left[draft.largest(donor)] >= need[donor]
    ]
    if not pairs:
        return False
    *_, donor, receiver = min(pairs)
    draft.give(donor, receiver, need[donor])
    return True


def _pull(draft: Draft, need: dict[int, int], room: dict[int, int], near_first: bool) -> None:
    """The emptiest receiver takes the largest piece, own node first if asked, then the fullest."""
    receiver = max(room, key=lambda rank: (room[rank], -rank))
    piece = {rank: min(room[receiver], draft.left[draft.largest(rank)]) for rank in need}
    donor = max(
        need,
        key=lambda rank: (
            piece[rank],
            near_first and draft.near(rank, receiver),
            draft.tokens[rank],
            -rank,
        ),
    )
    draft.give(donor, receiver, piece[donor])


def lower_bound(
    weight: dict[int, int], home: dict[int, int], topology: Topology, spare_slots: int
) -> int:
    """Least possible pairs on the busiest rank, as ``foremoe.planner.bound`` defines it."""
    ranks = range(topology.ranks)
    home_load = [sum(w for e, w in weight.items() if home[e] == rank) for rank in ranks]
    importable = [
        sum(sorted((w for e, w in weight.items() if home[e] != rank), reverse=True)[:spare_slots])
        for rank in ranks
    ]

    def possible(busiest: int) -> bool:
        excess = sum(max(load - busiest, 0) for load in home_load)
        room = sum(
            min(max(busiest - load, 0), most)
            for load, most in zip(home_load, importable, strict=True)
        )
        return excess <= room

    low, high = -(-sum(home_load) // topology.ranks), max(home_load)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if possible(middle) else (middle + 1, high)
    return low


def split_layer(
    load: list[list[int]],
    home: dict[int, int],
    replicas: list[list[tuple[int, int]]],
    topology: Topology,
) -> dict[tuple[int, int, int], int]:
    """Pairs by (source, rank, slot), as ``foremoe.planner.split`` orders them."""
    left = [list(row) for row in load]
    missing = {
        (rank, slot): quota
        for rank, held in enumerate(replicas)
        for slot, (_, quota) in enumerate(held)
        if quota > 0
    }
    tokens: dict[tuple[int, int, int], int] = {}

    def distance(source: int, rank: int, owner: int) -> int:
        if source == rank:
            return 0
        if source == owner:
            return 4
        node = topology.node_of(source)
        if node == topology.node_of(rank):
            return 1
        return 3 if node == topology.node_of(owner) else 2

    for wanted in range(5):
        for rank, slot in missing:
            expert = replicas[rank][slot][0]
            for source in range(topology.ranks):
                if distance(source, rank, home[expert]) == wanted:
                    taken = min(missing[rank, slot], left[source][expert])
                    missing[rank, slot] -= taken
                    left[source][expert] -= taken
                    tokens[source, rank, slot] = taken
    return tokens


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
            bound = lower_bound(weight, home, topology, slots)
            goal = goal_tokens(sum(weight.values()), ranks, problem.target)
            replicas = plan_layer(weight, home, topology, slots, bound, goal)
            bounds[layer] = bound
            for rank, held in enumerate(replicas):
                for slot, (expert, _) in enumerate(held):
                    replica_expert[layer, rank, slot] = expert
            for place, count in split_layer(load, home, replicas, topology).items():
                replica_tokens[(layer, *place)] = count
        yield Plan(problem.home, problem.load[m], replica_expert, replica_tokens, bounds)


def goal_tokens(total: int, ranks: int, target: float | None) -> int:
    """Pairs on the busiest rank that the target imbalance allows; 0 without a target."""
    if target is None:
        return 0
    return max(1, floor(total * min(target / ranks, 1.0)))
