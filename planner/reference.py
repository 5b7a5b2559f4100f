"""The planner's algorithm in plain Python, readable from top to bottom, and the kernels' oracle.

Everything here is dicts, lists and integers; nothing is compiled and nothing is shared with the
kernels, yet every plan equals theirs byte for byte. Start at ``plan_layer``.
"""

from dataclasses import dataclass, field
from itertools import combinations, pairwise
from math import floor

from foremoe.planner.problem import Topology

RULES = (2, 4, 0)  # quarters of the slack a match may waste, as in foremoe.planner.draft
JUDGE = 0


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

    def room(self, rank: int, threshold: int) -> int:
        """Pairs the rank can take in a free slot."""
        free = len(self.replicas[rank]) < self.spare_slots
        return max(threshold - self.tokens[rank], 0) if free else 0

    def give(self, expert: int, receiver: int, piece: int) -> None:
        held = dict(self.replicas[receiver])
        held[expert] = held.get(expert, 0) + piece
        self.replicas[receiver] = list(held.items())
        self.left[expert] -= piece
        self.tokens[receiver] += piece
        self.tokens[self.home[expert]] -= piece

    def count(self) -> int:
        return sum(len(held) for held in self.replicas)


@dataclass(frozen=True)
class Nodes:
    """What the choice between donors looks at when there are several nodes."""

    topology: Topology
    origin: list[list[int]]  # by node and expert, pairs that originate there
    worth: int

    @property
    def groups(self) -> list[range]:
        width = self.topology.ranks_per_node
        return [range(start, start + width) for start in range(0, self.topology.ranks, width)]


def plan_layer(
    weight: dict[int, int],
    home: dict[int, int],
    topology: Topology,
    spare_slots: int,
    bound: int,
    goal: int,
) -> list[list[tuple[int, int]]]:
    """Replicas of one layer, all ranks alike: for each rank, (expert, quota) in slot order.

    ``goal`` is 0 for none.
    """

    def blank() -> Draft:
        return Draft(weight, home, topology, spare_slots)

    def fewest(threshold: int) -> Draft | None:
        best = None
        for quarters in RULES:
            if quarters == 0 and best:
                continue
            draft = blank()
            if attempt(draft, threshold, quarters) and (
                best is None or draft.count() < best.count()
            ):
                best = draft
        return best

    # Nothing to do: no slots, or home alone is as good as it can or need be.
    without = blank()
    if spare_slots == 0 or max(without.tokens) <= max(bound, goal):
        return without.replicas

    # With a goal: any rule that reaches it will do.
    if goal:
        reached_goal = fewest(max(bound, goal))
        if reached_goal:
            return reached_goal.replicas

    # Otherwise bisect for the lowest threshold, starting at the lower bound, by pulls alone.
    low, high = max(bound, goal + 1), max(without.tokens)
    threshold = low
    while low < high:
        draft = blank()
        reached = attempt(draft, threshold, JUDGE)
        high = min(high, max(draft.tokens))
        if not reached:
            low = threshold + 1
        threshold = (low + high) // 2

    # At that threshold take the draft with the fewest replicas.
    if high == max(without.tokens):
        return without.replicas
    best = fewest(high)
    assert best is not None
    return best.replicas


def attempt(draft: Draft, threshold: int, quarters: int, nodes: Nodes | None = None) -> bool:
    """Move pieces until no rank is above the threshold; False if that is impossible."""
    if nodes and quarters:
        for ranks in nodes.groups:
            _level_ranks(draft, threshold, quarters, ranks, nodes)
    return _level_ranks(draft, threshold, quarters, range(draft.topology.ranks), nodes)


def _level_ranks(
    draft: Draft, threshold: int, quarters: int, ranks: range, nodes: Nodes | None
) -> bool:
    """Match and pull among some ranks until none is above the threshold; False if impossible."""
    whole = len(ranks) == draft.topology.ranks
    while any(draft.tokens[rank] > threshold for rank in ranks):
        need = {r: draft.tokens[r] - threshold for r in ranks if draft.tokens[r] > threshold}
        room = {r: draft.room(r, threshold) for r in ranks if draft.room(r, threshold)}
        slack = sum(room.values()) - sum(need.values())
        if not room or (slack < 0 and whole):
            return False
        may_match = quarters > 0 and slack >= len(ranks)
        if may_match and _match(draft, need, room, slack * quarters // 4):
            continue
        if not whole:  # a last slot waits for a piece that fills its rank
            largest = max(draft.left[draft.largest(rank)] for rank in need)
            last = draft.spare_slots - 1
            room = {
                r: space
                for r, space in room.items()
                if space <= largest or len(draft.replicas[r]) < last
            }
            if not room:
                return False
        _pull(draft, threshold, need, room, nodes)
    return True


def _match(draft: Draft, need: dict[int, int], room: dict[int, int], most_waste: int) -> bool:
    """Settle one donor with one receiver, with the least waste."""
    pairs = [
        (room[receiver] - need[donor], donor, receiver)
        for donor in need
        for receiver in room
        if 0 <= room[receiver] - need[donor] <= most_waste
        and draft.left[draft.largest(donor)] >= need[donor]
    ]
    if not pairs:
        return False
    _, donor, receiver = min(pairs)
    draft.give(draft.largest(donor), receiver, need[donor])
    return True


def _pull(
    draft: Draft, threshold: int, need: dict[int, int], room: dict[int, int], nodes: Nodes | None
) -> None:
    """The emptiest receiver takes the largest piece; between equals the one of most value."""
    receiver = max(room, key=lambda rank: (room[rank], -rank))
    piece = {rank: min(room[receiver], draft.left[draft.largest(rank)]) for rank in need}

    def value(donor: int) -> int:
        if nodes is None:
            return 0
        node = nodes.topology.node_of(receiver)
        if nodes.topology.node_of(donor) != node:
            return min(piece[donor], nodes.origin[node][draft.largest(donor)])
        mates = nodes.groups[node]
        short = threshold * len(mates) - sum(draft.tokens[rank] for rank in mates)
        return 0 if 2 * short >= room[receiver] else nodes.worth

    donor = max(need, key=lambda rank: (piece[rank], value(rank), need[rank], -rank))
    draft.give(draft.largest(donor), receiver, piece[donor])


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

    sources = range(topology.ranks)
    far = [
        sum(row[e] for e in home if topology.node_of(home[e]) != topology.node_of(source))
        for source, row in enumerate(load)
    ]
    for wanted in range(5):
        for rank, slot in missing:
            expert = replicas[rank][slot][0]
            at_home = topology.node_of(rank) == topology.node_of(home[expert])
            limit = missing[rank, slot]
            if wanted == 1 and at_home:
                limit = -(-limit // topology.nodes)
            found = [(s, distance(s, rank, home[expert])) for s in sources]
            group = [s for s, d in found if d == wanted or (wanted == 3 and at_home and d == 1)]
            least = max(limit // topology.ranks_per_node, 1)
            change = 0 if at_home else {0: -1, 1: -1, 3: 1, 4: 1}.get(wanted, 0)
            while limit and (giving := [s for s in group if left[s][expert]]):
                source, *others = giving
                most = limit
                if change and wanted in (1, 3):  # so that far evens out
                    source, *others = sorted(giving, key=lambda s: change * far[s])
                    gap = abs(far[source] - far[others[0]]) if others else limit
                    most = max(gap, least)
                taken = min(limit, left[source][expert], most)
                limit -= taken
                missing[rank, slot] -= taken
                left[source][expert] -= taken
                far[source] += change * taken
                before = tokens.get((source, rank, slot), 0)
                tokens[source, rank, slot] = before + taken
    return tokens


def exchange_homes(
    micro_steps: list[list[int]], home: list[int], topology: Topology, least_gain: float
) -> list[int]:
    """Homes of one layer for ``micro_steps[m][e]`` pairs, as ``foremoe.planner.step_homes``."""
    experts, ranks, unit = range(len(home)), topology.ranks, 4096
    shares = []
    for tokens in micro_steps:
        scale = (sum(tokens) >> 31) + 1
        total = max(sum(tokens) // scale, 1)
        shares.append([count // scale * ranks * unit // total for count in tokens])
    product = [[sum(share[e] * share[f] for share in shares) for f in experts] for e in experts]
    limit = int(least_gain * len(micro_steps) * ranks * unit * unit)
    home = list(home)

    def shared(expert: int, mates: list[int]) -> int:
        return sum(product[expert][mate] for mate in mates)

    def gain(one: int, two: int) -> int:
        """What the squares lose if two experts change places."""
        apart = product[one][one] + product[two][two] - 2 * product[one][two]
        p, q = home[one], home[two]
        at_p = [e for e in experts if home[e] == p]
        at_q = [e for e in experts if home[e] == q]
        by_rank = shared(one, at_p) - shared(one, at_q) + shared(two, at_q) - shared(two, at_p)
        c, d = topology.node_of(p), topology.node_of(q)
        if c == d:
            return 2 * (by_rank - apart)
        at_c = [e for e in experts if topology.node_of(home[e]) == c]
        at_d = [e for e in experts if topology.node_of(home[e]) == d]
        by_node = shared(one, at_c) - shared(one, at_d) + shared(two, at_d) - shared(two, at_c)
        return 2 * (by_rank - apart) + 2 * (by_node - apart) // topology.ranks_per_node

    while True:
        pairs = [(e, f) for e in experts for f in experts if e < f and home[e] != home[f]]
        best = max(pairs, key=lambda pair: (gain(*pair), [-e for e in pair]), default=None)
        if best is None or gain(*best) <= limit:
            return home
        one, two = best
        home[one], home[two] = home[two], home[one]


def short_path(micro_steps: list[list[list[int]]]) -> list[int]:
    """The order of a mini-batch of ``micro_steps[m][l][e]`` pairs, as ``foremoe.planner.order``."""
    shares = []
    for layers in micro_steps:
        scales = [(sum(tokens) >> 31) + 1 for tokens in layers]
        shares.append(
            [
                count // scale * 4096 // max(sum(tokens) // scale, 1)
                for tokens, scale in zip(layers, scales, strict=True)
                for count in tokens
            ]
        )

    def distance(one: int, other: int) -> int:
        return sum((x - y) ** 2 for x, y in zip(shares[one], shares[other], strict=True))

    def length(path: list[int]) -> int:
        return sum(distance(*pair) for pair in pairwise(path))

    given = list(range(len(shares)))
    path, left = given[:1], given[1:]
    while left:
        path.append(min(left, key=lambda point: (distance(path[-1], point), point)))
        left.remove(path[-1])
    shortened = True
    while shortened:
        shortened = False
        for start, end in combinations(given, 2):
            other = path[:start] + path[start : end + 1][::-1] + path[end + 1 :]
            if length(other) < length(path):
                path, shortened = other, True
    return path if length(path) < length(given) else given


def goal_tokens(total: int, ranks: int, target: float | None) -> int:
    """Pairs on the busiest rank that the target imbalance allows; 0 without a target."""
    if target is None:
        return 0
    return max(1, floor(total * min(target / ranks, 1.0)))
