"""Where DeepSeek's EPLB (github.com/deepseek-ai/EPLB) places experts, with R spare slots a rank.

In plain Python: ``foremoe.planner.baselines_reference``.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel, part


@kernel
def eplb_placement(
    expert_tokens: NDArray[np.int64],
    home: NDArray[np.int32],
    ranks: int,
    spare_slots: int,
    width: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Homes ``[L, E]`` and replicas ``[L, P, R]``, int32, for ``expert_tokens, home [L, E]``.

    Every ``width`` consecutive ranks keep their experts among themselves.
    """
    layers, experts = home.shape
    placed = np.zeros((layers, experts), np.int32)
    replica_expert = np.full((layers, ranks, spare_slots), -1, np.int32)
    for layer in range(layers):
        for start in range(0, ranks, width):
            own = np.flatnonzero(home[layer] // width == start // width)
            weight = expert_tokens[layer][own]
            hosts = _hosts(weight, width, spare_slots)
            held = replica_expert[layer, start : start + width]
            placed[layer, own] = _pack(weight, hosts, held) + start
            for rank in range(width):
                for slot in range(spare_slots):
                    if held[rank, slot] >= 0:
                        held[rank, slot] = own[held[rank, slot]]
    return placed, replica_expert


@part
def _hosts(weight: NDArray[np.int64], ranks: int, spare_slots: int) -> NDArray[np.int64]:
    """How many ranks host each expert, ``[E]``: one more where the load per host is highest."""
    hosts = np.ones(len(weight), np.int64)
    for _ in range(ranks * spare_slots):
        most = -1
        for expert in range(len(weight)):
            if hosts[expert] == ranks or weight[expert] == 0:
                continue
            if most < 0 or weight[expert] / hosts[expert] > weight[most] / hosts[most]:
                most = expert
        if most < 0:
            break
        hosts[most] += 1
    return hosts


@part
def _pack(
    weight: NDArray[np.int64], hosts: NDArray[np.int64], held: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Homes ``[E]`` and, into ``held [P, R]``, replicas: the heaviest to the emptiest open rank.

    An expert's first instance takes a home slot, the others spare slots.
    """
    ranks, spare_slots = held.shape
    share = weight / hosts
    tokens, used = np.zeros(ranks, np.float64), np.zeros(ranks, np.int64)
    homes_free = np.full(ranks, len(weight) // ranks, np.int64)
    home = np.full(len(weight), -1, np.int32)
    for expert in np.argsort(-share, kind="mergesort"):
        for instance in range(hosts[expert]):
            emptiest = -1
            for rank in range(ranks):
                if instance == 0:
                    is_open = homes_free[rank] > 0
                else:
                    is_open = used[rank] < spare_slots and home[expert] != rank
                    is_open = is_open and not (held[rank, : used[rank]] == expert).any()
                if is_open and (emptiest < 0 or tokens[rank] < tokens[emptiest]):
                    emptiest = rank
            if emptiest < 0:
                break
            tokens[emptiest] += share[expert]
            if instance == 0:
                home[expert] = emptiest
                homes_free[emptiest] -= 1
            else:
                held[emptiest, used[emptiest]] = expert
                used[emptiest] += 1
    return home
