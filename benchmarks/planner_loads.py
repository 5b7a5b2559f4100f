"""Loads to plan for: recorded routing, and micro-steps drawn around recorded heat."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foremoe.commands.plan import stage_load
from foremoe.foresight.trace import load_trace

TRACES = Path(
    os.environ.get("FOREMOE_TRACES", Path(__file__).resolve().parents[2] / "shared" / "traces")
)
CONCENTRATION = 36.0  # of one sequence around the layer's heat: the recorded over-dispersion
TOKENS = 512  # a sequence


@dataclass(frozen=True)
class Workload:
    """``load [M, L, P, E]`` under a name."""

    name: str
    load: NDArray[np.int64]


def recorded(ranks: int, sequences_per_micro_step: int = 8) -> Workload:
    """gpt-oss-20b: 500 generated sequences, 24 layers, 32 experts, top-4."""
    histograms = load_trace(TRACES / "gpt_oss_20b.npz").histograms()
    return Workload(
        f"gpt-oss-20b trace, P = {ranks}",
        stage_load(histograms, ranks, sequences_per_micro_step),
    )


def drawn(model: str, ranks: int, micro_steps: int, layers: int, seed: int = 0) -> Workload:
    """One Dirichlet draw per (sequence, layer) around the recorded heat, then a multinomial.

    A micro-step has as many sequences as ranks, but at least 8.
    """
    with np.load(TRACES / "expert_heat.npz") as archive:
        heat = archive[model][:layers].astype(np.float64)
    top_k = 10 if model == "qwen3_next_80b" else 8
    return Workload(f"{model} heat, P = {ranks}", _draw(heat, ranks, micro_steps, top_k, seed))


def drawn_with_256_experts(ranks: int, micro_steps: int, layers: int) -> Workload:
    """Two neighbouring layers of Qwen3-30B-A3B side by side as one of 256 experts."""
    with np.load(TRACES / "expert_heat.npz") as archive:
        heat = archive["qwen3_30b_a3b"][: 2 * layers].astype(np.float64)
    both = np.concatenate([heat[0::2], heat[1::2]], axis=1)
    return Workload(f"256 experts, P = {ranks}", _draw(both, ranks, micro_steps, 8, 0))


def pooled(workload: Workload, experts: int) -> Workload:
    """The same load with neighbouring experts taken together, ``experts`` in all."""
    load = workload.load
    shape = (*load.shape[:3], experts, load.shape[3] // experts)
    return Workload(f"{workload.name}, E = {experts}", load.reshape(shape).sum(axis=4))


def _draw(
    heat: NDArray[np.float64], ranks: int, micro_steps: int, top_k: int, seed: int
) -> NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    layers, experts = heat.shape
    concentration = CONCENTRATION * heat / heat.sum(axis=1, keepdims=True) + 1e-9
    load = np.zeros((micro_steps, layers, ranks, experts), np.int64)
    for micro_step in range(micro_steps):
        for sequence in range(max(ranks, 8)):
            for layer in range(layers):
                share = generator.dirichlet(concentration[layer])
                counts = generator.multinomial(TOKENS * top_k, share)
                load[micro_step, layer, sequence % ranks] += counts
    return load
