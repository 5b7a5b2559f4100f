"""What others do, under our interface: own implementations from their published descriptions.

Written for reading and comparing, not for speed: plain Python, one layer at a time. Sources of the
descriptions: DeepSeek EPLB (github.com/deepseek-ai/EPLB), UltraEP (arXiv 2606.04101), MoonEP
(Moonshot AI), each as far as it fits fixed spare slots: R a rank beside its home experts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.bound import lower_bound
from foremoe.planner.plan import Plan
from foremoe.planner.problem import StageProblem
from foremoe.planner.split import split_by_source

Replicas = list[list[tuple[int, int]]]  # by rank: (expert, quota) by slot


@dataclass
class Layer:
    """One layer of one micro-step while it is planned."""

    weight: list[int]
    home: list[int]
    ranks: int
    ranks_per_node: int
    spare_slots: int
    left: list[int] = field(init=False)  # pairs still with the home
    tokens: list[int] = field(init=False)  # pairs by rank
    replicas: Replicas = field(init=False)

    def __post_init__(self) -> None:
        self.left = list(self.weight)
        self.replicas = [[] for _ in range(self.ranks)]
        self.tokens = [0] * self.ranks
        for expert, rank in enumerate(self.home):
            self.tokens[rank] += self.weight[expert]

    def local(self, rank: int) -> list[int]:
        """The rank's home experts, the largest first."""
        experts = [expert for expert, owner in enumerate(self.home) if owner == rank]
        return sorted(experts, key=lambda expert: -self.left[expert])

    def open_to(self, rank: int, expert: int) -> bool:
        """True if the rank has a free slot and does not host the expert yet."""
        held = self.replicas[rank]
        return (
            len(held) < self.spare_slots
            and self.home[expert] != rank
            and all(expert != other for other, _ in held)
        )

    def give(self, expert: int, receiver: int, piece: int) -> None:
        self.replicas[receiver].append((expert, piece))
        self.left[expert] -= piece
        self.tokens[receiver] += piece
        self.tokens[self.home[expert]] -= piece


def lpt_homes(problem: StageProblem) -> Iterator[Plan]:
    """No replicas; homes by longest processing time first over the stage's total load."""
    ranks = problem.topology.ranks
    home = np.stack([lpt(total, ranks) for total in problem.load.sum(axis=(0, 2))])
    for load in problem.load:
        layers = [_layer(problem, load, home, row) for row in range(len(home))]
        yield _plan(problem, load, home, layers)


def eplb_oracle(problem: StageProblem) -> Iterator[Plan]:
    """EPLB that knows the load it plans for: homes and replicas placed anew each time."""
    for load in problem.load:
        yield _eplb(problem, load, load.sum(axis=1), problem.topology.ranks)


def eplb_oracle_in_node(problem: StageProblem) -> Iterator[Plan]:
    """The same in each node by itself: experts and replicas stay where copies are cheap."""
    for load in problem.load:
        yield _eplb(problem, load, load.sum(axis=1), problem.topology.ranks_per_node)


def eplb_history(problem: StageProblem) -> Iterator[Plan]:
    """EPLB from the load of all micro-steps before, which is what it has in practice."""
    yield from _eplb_from_the_past(problem, problem.topology.ranks)


def eplb_history_in_node(problem: StageProblem) -> Iterator[Plan]:
    """The same in each node by itself."""
    yield from _eplb_from_the_past(problem, problem.topology.ranks_per_node)


def _eplb_from_the_past(problem: StageProblem, width: int) -> Iterator[Plan]:
    past = np.zeros_like(problem.load[0].sum(axis=1))
    for load in problem.load:
        yield _eplb(problem, load, past, width)
        past = past + load.sum(axis=1)


def greedy(problem: StageProblem) -> Iterator[Plan]:
    """UltraEP's quotas: the least threshold at which a greedy export succeeds."""
    yield from _each_layer(problem, lambda layer: _greedy(layer, confined=False))


def greedy_in_node(problem: StageProblem) -> Iterator[Plan]:
    """The same with replicas confined to their home's node, UltraEP's fast-link domain."""
    yield from _each_layer(problem, lambda layer: _greedy(layer, confined=True))


def alias(problem: StageProblem) -> Iterator[Plan]:
    """MoonEP's pairing, cut to R slots: the fullest rank fills the emptiest one to the mean."""
    yield from _each_layer(problem, lambda layer: _alias(layer, layer.ranks))


def alias_in_node(problem: StageProblem) -> Iterator[Plan]:
    """The same among the ranks of each node, to the node's mean."""
    yield from _each_layer(problem, lambda layer: _alias(layer, layer.ranks_per_node))


def lpt(weight: NDArray[np.int64], ranks: int) -> NDArray[np.int32]:
    """Homes of one layer, int32 ``[E]``: the heaviest expert first, to the emptiest rank."""
    tokens, free = [0] * ranks, [len(weight) // ranks] * ranks
    home = np.zeros(len(weight), np.int32)
    for expert in np.argsort(-weight, kind="stable").tolist():
        rank = min((r for r in range(ranks) if free[r]), key=lambda r: (tokens[r], r))
        home[expert] = rank
        tokens[rank] += int(weight[expert])
        free[rank] -= 1
    return home


def _greedy(layer: Layer, confined: bool) -> Layer:
    """Bisect for the threshold, from 1% above the mean; the last draft that succeeded."""
    best = layer
    low, high = -(-sum(layer.weight) * 101 // (100 * layer.ranks)), max(layer.tokens)
    threshold = low
    while low < high:
        draft = Layer(
            layer.weight, layer.home, layer.ranks, layer.ranks_per_node, layer.spare_slots
        )
        if _export(draft, threshold, confined):
            best, high = draft, threshold
        else:
            low = threshold + 1
        threshold = (low + high) // 2
    return best


def _export(layer: Layer, threshold: int, confined: bool) -> bool:
    """Ranks and their experts by falling load give what they have above the threshold."""
    for donor in sorted(range(layer.ranks), key=lambda rank: -layer.tokens[rank]):
        for expert in layer.local(donor):
            while layer.tokens[donor] > threshold and layer.left[expert] > 0:
                node = donor // layer.ranks_per_node
                targets = [
                    rank
                    for rank in range(layer.ranks)
                    if layer.tokens[rank] < threshold
                    and layer.open_to(rank, expert)
                    and not (confined and rank // layer.ranks_per_node != node)
                ]
                if not targets:
                    break
                need = min(layer.tokens[donor] - threshold, layer.left[expert])
                target = max(targets, key=lambda rank: (threshold - layer.tokens[rank], -rank))
                layer.give(expert, target, min(need, threshold - layer.tokens[target]))
        if layer.tokens[donor] > threshold:
            return False
    return True


def _alias(layer: Layer, width: int) -> Layer:
    for start in range(0, layer.ranks, width):
        _pair(layer, range(start, start + width))
    return layer


def _pair(layer: Layer, ranks: range) -> None:
    mean = -(-sum(layer.tokens[rank] for rank in ranks) // len(ranks))
    closed: set[int] = set()
    while True:
        receivers = [
            rank
            for rank in ranks
            if rank not in closed
            and layer.tokens[rank] < mean
            and len(layer.replicas[rank]) < layer.spare_slots
        ]
        donor = max(ranks, key=lambda rank: (layer.tokens[rank], -rank))
        if not receivers or layer.tokens[donor] <= mean:
            return
        receiver = min(receivers, key=lambda rank: (layer.tokens[rank], rank))
        # All of the receiver's slots import from this one donor, largest expert first.
        for expert in layer.local(donor):
            piece = min(mean - layer.tokens[receiver], layer.left[expert])
            if piece > 0 and layer.open_to(receiver, expert):
                layer.give(expert, receiver, piece)
        closed.add(receiver)


def _eplb(
    problem: StageProblem, load: NDArray[np.int64], known: NDArray[np.int64], width: int
) -> Plan:
    """Place from the ``known`` load ``[L, E]``, then share the real one equally among the hosts.

    Every ``width`` ranks keep their experts among themselves.
    """
    home = np.zeros_like(problem.home)
    layers = []
    for row, weight in enumerate(known):
        hosted: list[list[int]] = []
        for start in range(0, problem.topology.ranks, width):
            (own,) = np.nonzero(problem.home[row] // width == start // width)
            placed, held = _eplb_layer(weight[own].tolist(), width, problem.spare_slots)
            home[row, own] = np.array(placed) + start
            hosted += [own[experts].tolist() for experts in held]
        layer = _layer(problem, load, home, row)
        hosts = [1] * len(weight)
        for experts in hosted:
            for expert in experts:
                hosts[expert] += 1
        for rank, experts in enumerate(hosted):
            for expert in experts:
                layer.give(expert, rank, layer.weight[expert] // hosts[expert])
        layers.append(layer)
    return _plan(problem, load, home, layers)


def _eplb_layer(
    weight: list[int], ranks: int, spare_slots: int
) -> tuple[list[int], list[list[int]]]:
    """Replicate where the load per host is highest, then pack all instances, heaviest first.

    An expert's first instance takes a home slot, the others spare slots.
    """
    experts = len(weight)
    hosts = [1] * experts
    for _ in range(ranks * spare_slots):
        candidates = [e for e in range(experts) if hosts[e] < ranks and weight[e] > 0]
        if not candidates:
            break
        hosts[max(candidates, key=lambda e: (weight[e] / hosts[e], -e))] += 1
    tokens, homes_free = [0.0] * ranks, [experts // ranks] * ranks
    home = [-1] * experts
    hosted: list[list[int]] = [[] for _ in range(ranks)]
    for expert in sorted(range(experts), key=lambda e: (-weight[e] / hosts[e], e)):
        for instance in range(hosts[expert]):
            if instance == 0:
                free = [rank for rank in range(ranks) if homes_free[rank]]
            else:
                free = [
                    rank
                    for rank in range(ranks)
                    if len(hosted[rank]) < spare_slots
                    and home[expert] != rank
                    and expert not in hosted[rank]
                ]
            if not free:
                break
            rank = min(free, key=lambda r: (tokens[r], r))
            tokens[rank] += weight[expert] / hosts[expert]
            if instance == 0:
                home[expert] = rank
                homes_free[rank] -= 1
            else:
                hosted[rank].append(expert)
    return home, hosted


def _each_layer(problem: StageProblem, plan: Callable[[Layer], Layer]) -> Iterator[Plan]:
    for load in problem.load:
        layers = [plan(_layer(problem, load, problem.home, row)) for row in range(load.shape[0])]
        yield _plan(problem, load, problem.home, layers)


def _layer(
    problem: StageProblem, load: NDArray[np.int64], home: NDArray[np.int32], row: int
) -> Layer:
    return Layer(
        weight=load[row].sum(axis=0).tolist(),
        home=home[row].tolist(),
        ranks=problem.topology.ranks,
        ranks_per_node=problem.topology.ranks_per_node,
        spare_slots=problem.spare_slots,
    )


def _plan(
    problem: StageProblem, load: NDArray[np.int64], home: NDArray[np.int32], layers: list[Layer]
) -> Plan:
    ranks, slots = problem.topology.ranks, problem.spare_slots
    replica_expert = np.full((len(layers), ranks, slots), -1, np.int32)
    quota = np.zeros((len(layers), ranks, slots), np.int64)
    for row, layer in enumerate(layers):
        for rank, held in enumerate(layer.replicas):
            for slot, (expert, piece) in enumerate(held):
                replica_expert[row, rank, slot], quota[row, rank, slot] = expert, piece
    return Plan(
        home=home,
        load=load,
        replica_expert=replica_expert,
        replica_tokens=split_by_source(
            load, home, replica_expert, quota, problem.topology.ranks_per_node
        ),
        bound=lower_bound(load.sum(axis=1), home, ranks, slots),
    )
