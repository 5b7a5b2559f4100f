"""``foremoe.planner.greedy`` and ``eplb`` in plain Python: their oracle, and easier to read."""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.baselines import Layer, quotas


def greedy_replicas(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    ranks: int,
    spare_slots: int,
    width: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """As ``foremoe.planner.greedy.greedy_replicas``."""
    layers = [
        _greedy(Layer(weight, owner, ranks, width, spare_slots))
        for weight, owner in zip(expert_tokens.tolist(), home.tolist(), strict=True)
    ]
    return quotas(layers, ranks, spare_slots)


def eplb_placement(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    ranks: int,
    spare_slots: int,
    width: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """As ``foremoe.planner.eplb.eplb_placement``."""
    placed = np.zeros_like(home)
    replica_expert = np.full((len(home), ranks, spare_slots), -1, np.int32)
    for row, weight in enumerate(expert_tokens):
        for start in range(0, ranks, width):
            (own,) = np.nonzero(home[row] // width == start // width)
            homes, held = _eplb_layer(weight[own].tolist(), width, spare_slots)
            placed[row, own] = np.array(homes) + start
            for rank, experts in enumerate(held):
                replica_expert[row, start + rank, : len(experts)] = own[experts]
    return placed, replica_expert


def _greedy(layer: Layer) -> Layer:
    """Bisect for the threshold, from 1% above the mean; the last draft that succeeded."""
    best = layer
    low, high = -(-sum(layer.weight) * 101 // (100 * layer.ranks)), max(layer.tokens)
    threshold = low
    while low < high:
        draft = Layer(layer.weight, layer.home, layer.ranks, layer.width, layer.spare_slots)
        if _export(draft, threshold):
            best, high = draft, threshold
        else:
            low = threshold + 1
        threshold = (low + high) // 2
    return best


def _export(layer: Layer, threshold: int) -> bool:
    """Ranks and their experts by falling load give what they have above the threshold."""
    for donor in sorted(range(layer.ranks), key=lambda rank: -layer.tokens[rank]):
        for expert in layer.local(donor):
            while layer.tokens[donor] > threshold and layer.left[expert] > 0:
                node = donor // layer.width
                targets = [
                    rank
                    for rank in range(layer.ranks)
                    if layer.tokens[rank] < threshold
                    and layer.open_to(rank, expert)
                    and rank // layer.width == node
                ]
                if not targets:
                    break
                need = min(layer.tokens[donor] - threshold, layer.left[expert])
                target = max(targets, key=lambda rank: (threshold - layer.tokens[rank], -rank))
                layer.give(expert, target, min(need, threshold - layer.tokens[target]))
        if layer.tokens[donor] > threshold:
            return False
    return True


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
