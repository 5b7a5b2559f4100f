"""What others do, under our interface: own implementations from their published descriptions.

Sources of the descriptions: DeepSeek EPLB (github.com/deepseek-ai/EPLB), UltraEP (arXiv
2606.04101), MoonEP (Moonshot AI), each as far as it fits fixed spare slots: R a rank beside its
home experts. EPLB and UltraEP's quotas are compiled, for the simulator; the rest is plain Python.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.bound import lower_bound
from foremoe.planner.eplb import eplb_placement
from foremoe.planner.greedy import greedy_replicas
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
    width: int  # of that many consecutive ranks, those that share an expert
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
        layers = _layers(problem, load, home, ranks)
        yield _plan(problem, load, home, *quotas(layers, ranks, problem.spare_slots))


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
    yield from _greedy(problem, problem.topology.ranks)


def greedy_in_node(problem: StageProblem) -> Iterator[Plan]:
    """The same with replicas confined to their home's node, UltraEP's fast-link domain."""
    yield from _greedy(problem, problem.topology.ranks_per_node)


def alias(problem: StageProblem) -> Iterator[Plan]:
    """MoonEP's pairing, cut to R slots: the fullest rank fills the emptiest one to the mean."""
    yield from _alias(problem, problem.topology.ranks)


def alias_in_node(problem: StageProblem) -> Iterator[Plan]:
    """The same among the ranks of each node, to the node's mean."""
    yield from _alias(problem, problem.topology.ranks_per_node)


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


def quotas(
    layers: Sequence[Layer], ranks: int, spare_slots: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The layers' replicas int32 and quotas int64 ``[L, P, R]``."""
    replica_expert = np.full((len(layers), ranks, spare_slots), -1, np.int32)
    quota = np.zeros((len(layers), ranks, spare_slots), np.int64)
    for row, layer in enumerate(layers):
        for rank, held in enumerate(layer.replicas):
            for slot, (expert, piece) in enumerate(held):
                replica_expert[row, rank, slot], quota[row, rank, slot] = expert, piece
    return replica_expert, quota


def _greedy(problem: StageProblem, width: int) -> Iterator[Plan]:
    ranks, home = problem.topology.ranks, problem.home
    for load in problem.load:
        found = greedy_replicas(load.sum(axis=1), home, ranks, problem.spare_slots, width)
        yield _plan(problem, load, home, *found)


def _eplb(
    problem: StageProblem, load: NDArray[np.int64], known: NDArray[np.int64], width: int
) -> Plan:
    """Place from the ``known`` load ``[L, E]``, then share the real one equally among the hosts."""
    ranks = problem.topology.ranks
    home, replica_expert = eplb_placement(known, problem.home, ranks, problem.spare_slots, width)
    layer, rank, slot = np.nonzero(replica_expert >= 0)
    expert = replica_expert[layer, rank, slot]
    hosts = np.ones(known.shape, np.int64)
    np.add.at(hosts, (layer, expert), 1)
    quota = np.zeros(replica_expert.shape, np.int64)
    quota[layer, rank, slot] = load.sum(axis=1)[layer, expert] // hosts[layer, expert]
    return _plan(problem, load, home, replica_expert, quota)


def _alias(problem: StageProblem, width: int) -> Iterator[Plan]:
    ranks = problem.topology.ranks
    for load in problem.load:
        layers = _layers(problem, load, problem.home, width)
        for layer in layers:
            for start in range(0, ranks, width):
                _pair(layer, range(start, start + width))
        yield _plan(problem, load, problem.home, *quotas(layers, ranks, problem.spare_slots))


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


def _layers(
    problem: StageProblem, load: NDArray[np.int64], home: NDArray[np.int32], width: int
) -> list[Layer]:
    return [
        Layer(weight, owner, problem.topology.ranks, width, problem.spare_slots)
        for weight, owner in zip(load.sum(axis=1).tolist(), home.tolist(), strict=True)
    ]


def _plan(
    problem: StageProblem,
    load: NDArray[np.int64],
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    quota: NDArray[np.int64],
) -> Plan:
    ranks, width = problem.topology.ranks, problem.topology.ranks_per_node
    return Plan(
        home=home,
        load=load,
        replica_expert=replica_expert,
        replica_tokens=split_by_source(load, home, replica_expert, quota, width),
        bound=lower_bound(load.sum(axis=1), home, ranks, problem.spare_slots),
    )
