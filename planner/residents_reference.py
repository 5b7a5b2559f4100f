"""The policy ``resident`` in plain Python: the oracle of ``foremoe.planner.residents``.

The text there is the algorithm; the steps here follow it, with dicts and lists.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from foremoe.planner import micro_step_reference, reference
from foremoe.planner.over_time import DEFAULT_TARGET, LOOKAHEAD
from foremoe.planner.plan import Plan
from foremoe.planner.problem import StageProblem
from foremoe.planner.residents import HEAVIEST, SHARE

Slots = list[list[int | None]]  # by rank and place


class Flow:
    """The pairs of one micro-step and layer: on each expert's home and in each slot."""

    def __init__(self, weight: dict[int, int], home: dict[int, int], slots: Slots) -> None:
        self.home, self.slots = home, slots
        self.left = dict(weight)
        self.served = [[0] * len(row) for row in slots]
        self.tokens = [sum(weight[e] for e in home if home[e] == r) for r in range(len(slots))]
        self.stuck: set[int] = set()
        self.excess = 0

    def run(self, threshold: int) -> None:
        """Augment along shortest paths until no rank above the threshold reaches room."""
        while (path := self._path(threshold)) is not None:
            start, end = path[0][0], path[-1][3]
            moved = min(self.tokens[start] - threshold, threshold - self.tokens[end])
            for source, given, expert, _, _ in path:
                moved = min(
                    moved, self.left[expert] if given is None else self.served[source][given]
                )
            self.tokens[start] -= moved
            self.tokens[end] += moved
            for source, given, expert, rank, taken in path:
                self._add(source, given, expert, -moved)
                self._add(rank, taken, expert, moved)
        self.excess = sum(max(count - threshold, 0) for count in self.tokens)

    def evict(self, rank: int, place: int, expert: int) -> bool:
        """Send a slot's pairs back home; True if there were any."""
        returned = self.served[rank][place]
        self._add(rank, place, expert, -returned)
        self._add(self.home[expert], None, expert, returned)
        self.tokens[rank] -= returned
        self.tokens[self.home[expert]] += returned
        return returned > 0

    def movable(self) -> dict[int, int]:
        """Pairs of each expert on stuck ranks."""
        movable = {e: self.left[e] if self.home[e] in self.stuck else 0 for e in self.home}
        for rank in self.stuck:
            for place, expert in enumerate(self.slots[rank]):
                if expert is not None:
                    movable[expert] += self.served[rank][place]
        return movable

    def reach(self, threshold: int) -> list[int]:
        """Pairs each rank could take or pass on; none where stuck."""
        free = [rank not in self.stuck for rank in range(len(self.slots))]
        reach = [threshold - n if free[rank] else 0 for rank, n in enumerate(self.tokens)]
        for _ in range(2):
            for rank, row in enumerate(self.slots):
                for place, expert in enumerate(row):
                    if expert is None:
                        continue
                    owner = self.home[expert]
                    if free[owner]:
                        reach[owner] = max(reach[owner], min(self.left[expert], reach[rank]))
                    if free[rank]:
                        wide = min(self.served[rank][place], reach[owner])
                        reach[rank] = max(reach[rank], wide)
        return reach

    def _add(self, rank: int, place: int | None, expert: int, count: int) -> None:
        if place is None:
            self.left[expert] += count
        else:
            self.served[rank][place] += count

    def _path(self, threshold: int) -> list[tuple[int, int | None, int, int, int | None]] | None:
        """Hops (source, its place, expert, rank, its place), None if every way is closed."""
        queue = [rank for rank, count in enumerate(self.tokens) if count > threshold]
        self.stuck = set(queue)
        hops: dict[int, tuple[int, int | None, int, int, int | None]] = {}
        for source in queue:
            new = []
            for given, expert, rank, taken in self._ways(source):
                if rank not in self.stuck:
                    self.stuck.add(rank)
                    hops[rank] = (source, given, expert, rank, taken)
                    new.append(rank)
            queue += new
            for rank in new:
                if self.tokens[rank] < threshold:
                    path = [hops[rank]]
                    while path[0][0] in hops:
                        path.insert(0, hops[path[0][0]])
                    return path
        return None

    def _ways(self, source: int) -> Iterator[tuple[int | None, int, int, int | None]]:
        """Where pairs on a rank may go: (place they leave, expert, rank, place they enter)."""
        held = [
            (expert, rank, place)
            for rank, row in enumerate(self.slots)
            for place, expert in enumerate(row)
            if expert is not None
        ]
        for expert, rank, place in held:
            if self.home[expert] == source and self.left[expert] > 0:
                yield None, expert, rank, place
        for given, moving in enumerate(self.slots[source]):
            if moving is not None and self.served[source][given] > 0:
                yield given, moving, self.home[moving], None
                for expert, rank, place in held:
                    if expert == moving and rank != source:
                        yield given, expert, rank, place


class LayerSlots:
    """The slots of one layer through the micro-steps of a mini-batch."""

    def __init__(
        self, loads: list[list[list[int]]], home: dict[int, int], problem: StageProblem
    ) -> None:
        """Of ``loads[m][p][e]``."""
        weights = [{e: sum(row[e] for row in load) for e in home} for load in loads]
        self.loads, self.weights, self.home, self.topology = loads, weights, home, problem.topology
        self.spare_slots = problem.spare_slots
        target = DEFAULT_TARGET if problem.target is None else problem.target
        self.bounds = [
            reference.lower_bound(weight, home, self.topology, self.spare_slots)
            for weight in weights
        ]
        self.thresholds = [
            max(bound, reference.goal_tokens(sum(weight.values()), self.topology.ranks, target))
            for bound, weight in zip(self.bounds, weights, strict=True)
        ]
        self.slots: Slots = [[None] * self.spare_slots for _ in range(self.topology.ranks)]
        self.flows: dict[int, Flow] = {}

    def plan(self, m: int) -> Flow:
        """Settle micro-step ``m``: the slots then hold its replicas, the flow its quotas."""
        if m == 0:
            self._plan_alone(m)
        else:
            self._settle(m)
            if self._flow(m).excess > 0:
                self._plan_alone(m)
        return self.flows[m]

    def _flow(self, m: int) -> Flow:
        if m not in self.flows:
            self.flows[m] = Flow(self.weights[m], self.home, self.slots)
            self.flows[m].run(self.thresholds[m])
        return self.flows[m]

    def _settle(self, m: int) -> None:
        sight = range(m, min(m + LOOKAHEAD + 1, len(self.weights)))
        fixed: set[tuple[int, int]] = set()
        while self._flow(m).excess > 0:
            for other in sight:
                self._flow(other)
            candidates = self._candidates(m, fixed)
            if not candidates:
                return
            losses = self._losses(sight)
            choices = []
            for rank, expert in candidates:
                place = self._cheapest_place(rank, fixed, losses)
                near = self.topology.node_of(rank) == self.topology.node_of(self.home[expert])
                choices.append((-losses[rank][place], near, -rank, -expert, place))
            gains = self._gains(candidates, sight)
            _, _, rank, expert, place = max(
                ((gain if near else gain // 2) + loss, near, rank, expert, place)
                for gain, (loss, near, rank, expert, place) in zip(gains, choices, strict=True)
            )
            fixed.add((-rank, place))
            self._exchange(-rank, place, -expert, sight)

    def _candidates(self, m: int, fixed: set[tuple[int, int]]) -> list[tuple[int, int]]:
        flow = self._flow(m)
        movable, reach = flow.movable(), flow.reach(self.thresholds[m])
        return [
            (rank, expert)
            for rank, row in enumerate(self.slots)
            for expert, owner in self.home.items()
            if reach[rank] > 0
            and movable[expert] > 0
            and owner != rank
            and expert not in row
            and any((rank, place) not in fixed for place in range(self.spare_slots))
        ]

    def _gains(self, candidates: list[tuple[int, int]], sight: range) -> list[int]:
        gains = [0] * len(candidates)
        for weight, m in zip(_weights(), sight, strict=False):
            flow = self._flow(m)
            if flow.excess > 0:
                movable, reach = flow.movable(), flow.reach(self.thresholds[m])
                for index, (rank, expert) in enumerate(candidates):
                    gain = min(movable[expert], reach[rank], flow.excess)
                    gains[index] += weight * (gain * SHARE // flow.excess)
        return gains

    def _losses(self, sight: range) -> list[list[int]]:
        losses = [[0] * self.spare_slots for _ in self.slots]
        for weight, m in zip(_weights(), sight, strict=False):
            whole = max(self.thresholds[m], 1)
            for rank, row in enumerate(self._flow(m).served):
                for place, served in enumerate(row):
                    losses[rank][place] += weight * min(2 * served * SHARE // whole, SHARE)
        return losses

    def _cheapest_place(
        self, rank: int, fixed: set[tuple[int, int]], losses: list[list[int]]
    ) -> int:
        places = [place for place in range(self.spare_slots) if (rank, place) not in fixed]
        return min(
            places,
            key=lambda place: (self.slots[rank][place] is not None, losses[rank][place], place),
        )

    def _exchange(self, rank: int, place: int, expert: int, sight: range) -> None:
        evicted = self.slots[rank][place]
        self.slots[rank][place] = expert
        for m in sight:
            flow = self.flows[m]
            returned = evicted is not None and flow.evict(rank, place, evicted)
            if returned or flow.excess > 0:
                flow.run(self.thresholds[m])

    def _plan_alone(self, m: int) -> None:
        wanted = micro_step_reference.plan_layer(
            self.loads[m],
            self.home,
            self.topology,
            self.spare_slots,
            self.bounds[m],
            self.thresholds[m],
            eagerness=int(m == 0),
        )
        tokens = Flow(self.weights[m], self.home, self.slots).tokens
        for rank, held in enumerate(wanted):
            for expert, quota in held:
                tokens[rank] += quota
                tokens[self.home[expert]] -= quota
        if m in self.flows and max(tokens) >= max(self.flows[m].tokens):
            return
        for rank, held in enumerate(wanted):
            _merge(self.slots[rank], [expert for expert, _ in held])
        self.thresholds[m] = max(self.thresholds[m], max(tokens))
        self.flows.clear()
        self._flow(m)


def plan_stage(problem: StageProblem) -> Iterator[Plan]:
    """The policy ``resident`` without kernels; for comparison, orders of magnitude slower."""
    experts = problem.load.shape[3]
    batch = None
    for m, load in enumerate(problem.load):
        if problem.mini_batch[m] != batch:
            batch, start = problem.mini_batch[m], m
            loads = problem.load[problem.mini_batch == batch]
            layers = [
                LayerSlots(
                    loads[:, layer].tolist(),
                    {e: int(home[e]) for e in range(experts)},
                    problem,
                )
                for layer, home in enumerate(problem.home)
            ]
        yield _plan(problem, load, layers, m - start)


def _plan(problem: StageProblem, load: NDArray[np.int64], layers: list[LayerSlots], m: int) -> Plan:
    ranks, slots = problem.topology.ranks, problem.spare_slots
    replica_expert = np.full((len(layers), ranks, slots), -1, np.int32)
    replica_tokens = np.zeros((len(layers), ranks, ranks, slots), np.int64)
    for index, layer in enumerate(layers):
        flow = layer.plan(m)
        replicas = [
            [(-1 if expert is None else expert, quota) for expert, quota in zip(*row, strict=True)]
            for row in zip(layer.slots, flow.served, strict=True)
        ]
        for rank, held in enumerate(replicas):
            for place, (expert, _) in enumerate(held):
                replica_expert[index, rank, place] = expert
        sources = reference.split_layer(
            load[index].tolist(), layer.home, replicas, problem.topology
        )
        for (source, rank, place), count in sources.items():
            replica_tokens[index, source, rank, place] = count
    bounds = np.array([layer.bounds[m] for layer in layers], np.int64)
    return Plan(problem.home, load, replica_expert, replica_tokens, bounds)


def _weights() -> Iterator[int]:
    """Of the present micro-step, the next one, and so on."""
    yield 2 * HEAVIEST
    weight = HEAVIEST
    while True:
        yield weight
        weight = weight * 19 // 20


def _merge(row: list[int | None], wanted: list[int]) -> None:
    """Bring in what is wanted: to empty places first, then over what is not wanted."""
    empty = [place for place, expert in enumerate(row) if expert is None]
    stale = [
        place for place, expert in enumerate(row) if expert is not None and expert not in wanted
    ]
    missing = [expert for expert in wanted if expert not in row]
    for place, expert in zip(empty + stale, missing, strict=False):
        row[place] = expert
