"""What the planner's benchmark plans: balance, copies, their frontier, and several nodes."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.planner_figures import KEEP, Figure, measure
from benchmarks.planner_loads import drawn, recorded
from foremoe.planner.order import similar_order

TARGETS = (1.005, 1.01, 1.02, 1.03, 1.05, 1.10)
SLOTS = (1, 2, 4)
WAYS = {"foremoe": "alone", KEEP: "keeping what is there", "resident": "over time"}
PEERS = ("lpt-homes", "eplb-history", "eplb-oracle", "greedy", "alias")
NODE_PEERS = tuple(
    peer + where
    for peer in ("eplb-history", "eplb-oracle", "greedy", "alias")
    for where in ("", "-in-node")
)
ORDERS = ("as recorded", "shuffled", "similar")


def balance() -> Iterator[Figure]:
    """The best balance each policy finds."""
    cases = [(recorded(ranks), slots) for ranks in (8, 16) for slots in (1, 2)]
    cases += [(drawn("qwen3_30b_a3b", ranks, 4, 12), 1) for ranks in (8, 32, 64)]
    cases += [(drawn("qwen3_next_80b", 64, 4, 4), 1)]
    for workload, slots in cases:
        for policy in ("none", *PEERS, "foremoe"):
            yield measure(workload, "contiguous", policy, slots)
        for policy in ("none", "greedy", "alias", "foremoe"):  # the others choose homes themselves
            yield measure(workload, "step", policy, slots)


def over_time() -> Iterator[Figure]:
    """Copies at target 1.02: every micro-step alone, and over time."""
    for ranks in (8, 16):
        workload = recorded(ranks)
        for homes in ("contiguous", "step"):
            for slots in SLOTS:
                for policy in WAYS:
                    yield measure(workload, homes, policy, slots, 1.02)


def orders() -> Iterator[tuple[str, Figure]]:
    """Copies over time at target 1.02, by the order of the micro-steps; contiguous homes."""
    for ranks in (8, 16):
        workload = recorded(ranks)
        micro_steps = len(workload.load)
        places = {
            ORDERS[0]: np.arange(micro_steps),
            ORDERS[1]: np.random.default_rng(0).permutation(micro_steps),
            ORDERS[2]: similar_order(workload.load.sum(axis=2), np.zeros(micro_steps, np.int32)),
        }
        for slots in SLOTS:
            for order, place in places.items():
                moved = replace(workload, load=workload.load[place])
                yield order, measure(moved, "contiguous", "resident", slots, 1.02)


def frontier() -> Iterator[Figure]:
    """Copies against the target, and what peers reach and copy, contiguous homes."""
    workload = recorded(8)
    for slots in SLOTS:
        for policy in ("eplb-oracle", "greedy", "alias"):
            yield measure(workload, "contiguous", policy, slots)
        for target in TARGETS:
            for policy in WAYS:
                yield measure(workload, "contiguous", policy, slots, target)


def nodes() -> Iterator[tuple[Figure, Figure]]:
    """Eight nodes of eight ranks: each peer, and foremoe with the peer's balance as its target."""
    workload = drawn("qwen3_30b_a3b", 64, micro_steps=8, layers=6)
    for homes in ("contiguous", "step"):
        for slots in (1, 2):
            for policy in NODE_PEERS:
                peer = measure(workload, homes, policy, slots, nodes=8)
                target = peer.imbalance_mean
                yield peer, measure(workload, homes, "foremoe", slots, target, nodes=8)
            alone = measure(workload, homes, "foremoe", slots, 1.02, nodes=8)
            yield alone, measure(workload, homes, "resident", slots, 1.02, nodes=8)
