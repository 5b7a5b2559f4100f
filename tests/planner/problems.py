"""Hypothesis strategies for planning problems, ordinary and degenerate."""

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from foremoe.planner.problem import StageProblem, Topology


@st.composite
def problems(
    draw: st.DrawFn,
    max_ranks_per_node: int = 4,
    max_nodes: int = 3,
    max_experts_per_rank: int = 4,
    max_pairs: int = 2**35,
    max_micro_steps: int = 2,
) -> StageProblem:
    """Stages with any homes; loads range from all zero over skewed to beyond 2**31."""
    ranks_per_node = draw(st.integers(1, max_ranks_per_node))
    topology = Topology(ranks_per_node * draw(st.integers(1, max_nodes)), ranks_per_node)
    experts = topology.ranks * draw(st.integers(1, max_experts_per_rank))
    micro_steps, layers = draw(st.integers(1, max_micro_steps)), draw(st.integers(1, 2))
    most = draw(st.sampled_from([1, 9, 1000, max_pairs]))
    load = draw(
        hnp.arrays(
            np.int64,
            (micro_steps, layers, topology.ranks, experts),
            elements=st.one_of(st.just(0), st.integers(0, most)),
        )
    )
    contiguous = np.arange(experts) // (experts // topology.ranks)
    home = np.stack([draw(st.permutations(list(contiguous))) for _ in range(layers)])
    return StageProblem(
        load=load,
        home=home.astype(np.int32),
        mini_batch=np.sort(draw(hnp.arrays(np.int32, micro_steps, elements=st.integers(0, 1)))),
        topology=topology,
        spare_slots=draw(st.integers(0, 3)),
        target=draw(st.sampled_from([None, 1.0, 1.02, 1.1, 1.5, 1e300])),
    )


def pairs_by_node(
    problem: StageProblem,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Of each micro-step the pairs ``[L, nodes, E]``, and 1.25 times the mean rank's ``[L]``."""
    for load in problem.load:
        layers, ranks, experts = load.shape
        origin = load.reshape(layers, problem.topology.nodes, -1, experts).sum(axis=2)
        yield origin, origin.sum(axis=(1, 2)) * 5 // (4 * ranks) + 1


def skewed_problem(
    seed: int,
    ranks: int,
    ranks_per_node: int,
    experts: int,
    spare_slots: int,
    target: float | None = None,
    micro_steps: int = 4,
    layers: int = 3,
) -> StageProblem:
    """Loads as bursty as real routing: one Dirichlet draw per (micro-step, layer, source)."""
    generator = np.random.default_rng(seed)
    share = generator.dirichlet(np.full(experts, 0.5), (micro_steps, layers, ranks))
    return StageProblem(
        load=np.floor(share * 4096).astype(np.int64),
        home=np.tile(np.arange(experts) * ranks // experts, (layers, 1)).astype(np.int32),
        mini_batch=np.zeros(micro_steps, np.int32),
        topology=Topology(ranks, ranks_per_node),
        spare_slots=spare_slots,
        target=target,
    )
