"""Routing-aware packing beside packing by length, in one run.

    python -m benchmarks.packing [--json FILE] [--markdown FILE]

Every schedule of a case has the same number of micro-steps, the fewest that packing by length
needs. The figure is what the slowest rank computes, summed over layers and micro-steps, over what a
rank computes on average: 1.0 would be even ranks in every layer of every micro-step. Sequences:
recorded routing of gpt-oss-20b, and some drawn around the recorded heat of Qwen3-30B-A3B with
lognormal lengths. Step homes are chosen for each schedule from its own micro-steps, or for all
schedules alike from the step's total load.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.planner_loads import CONCENTRATION, TRACES
from benchmarks.record import Record
from benchmarks.table import Aim, aims_table, rows
from foremoe.foresight.trace import load_trace
from foremoe.planner.cost import new_replicas
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.packing import (
    UNLIMITED,
    AttentionCost,
    PackingProblem,
    packing_cost,
    propose_schedule,
    rank_pairs,
    warm_up,
)
from foremoe.planner.packing_lengths import length_packings
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.step_homes import step_homes

PACKED = "by routing"
NO_ATTENTION = AttentionCost()
# Qwen3-30B-A3B: 18.9 M attention weights a layer, 4.7 M in an expert, 32 heads of 128.
ATTENTION = AttentionCost(alpha=4.0, beta=0.00087)
HOMES = ("contiguous", "of the total load", "of the schedule")


@dataclass(frozen=True)
class Sequences:
    """``histograms [S, L, E]`` and ``tokens [S]`` under a name."""

    name: str
    histograms: NDArray[np.uint32]
    tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """One schedule of a case; costs relative to a rank's mean."""

    sequences: str
    ranks: int
    limit: str
    micro_steps: int
    attention: bool
    homes: str
    packing: str
    cost: float
    bound: float | None


@dataclass(frozen=True)
class Replicas:
    """The same schedules when the planner balances them."""

    packing: str
    policy: str
    spare_slots: int
    target: float | None
    cost: float
    replicas: float
    copies: float


@dataclass(frozen=True)
class Timing:
    """Packing at 48 layers: processor time of the one thread, as the machine is shared."""

    sequences: int
    ranks: int
    processor_seconds: float


def main() -> None:
    """Run everything, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    record = Record("packing", {"attention": asdict(ATTENTION)})
    warm_up()
    trace = _recorded()
    with Console().status("packing"):
        schedules = list(_schedules(trace))
        replicas = list(_replicas(trace))
        timings = list(_timings())
    text = _markdown(schedules, replicas, timings)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.json:
        figures = {
            "schedules": [asdict(schedule) for schedule in schedules],
            "replicas": [asdict(figure) for figure in replicas],
            "timings": [asdict(timing) for timing in timings],
        }
        record.write(arguments.json, figures)


def _recorded() -> Sequences:
    trace = load_trace(TRACES / "gpt_oss_20b.npz")
    return Sequences("gpt-oss-20b trace", trace.histograms(), np.diff(trace.offsets))


def _drawn(sequences: int, layers: int = 48) -> Sequences:
    """One Dirichlet draw per (sequence, layer) around the recorded heat."""
    with np.load(TRACES / "expert_heat.npz") as archive:
        heat = archive["qwen3_30b_a3b"][:layers].astype(np.float64)
    generator = np.random.default_rng(0)
    tokens = np.minimum(generator.lognormal(6.8, 0.9, sequences), 4096).astype(np.int64) + 1
    concentration = CONCENTRATION * heat / heat.sum(axis=1, keepdims=True) + 1e-9
    histograms = np.zeros((sequences, *heat.shape), np.uint32)
    for index in range(sequences):
        share = generator.gamma(concentration) + 1e-12
        share /= share.sum(axis=1, keepdims=True)
        histograms[index] = generator.multinomial(tokens[index] * 8, share)
    return Sequences("qwen3_30b_a3b heat", histograms, tokens)


def _schedules(trace: Sequences) -> Iterator[Schedule]:
    for ranks in (8, 16):
        for homes in HOMES:
            yield from _case(trace, ranks, "1 sequence", homes)
    for budget in (511, 1024, 2048):
        yield from _case(trace, 8, f"{budget} tokens", "contiguous")
        yield from _case(trace, 8, f"{budget} tokens", "of the total load")
    yield from _case(trace, 8, "1024 tokens", "contiguous", ATTENTION)
    drawn = _drawn(512)
    for homes in HOMES:
        yield from _case(drawn, 8, "4097 tokens", homes)
    yield from _case(drawn, 8, "4097 tokens", "contiguous", ATTENTION)


def _case(
    sequences: Sequences,
    ranks: int,
    limit: str,
    homes: str,
    attention: AttentionCost = NO_ATTENTION,
) -> Iterator[Schedule]:
    """Every packing by length, then the one by routing."""
    problem = _problem(sequences, ranks, limit, homes, attention)
    packed = propose_schedule(problem)
    bins = length_packings(problem.tokens, ranks, problem.token_budget, problem.max_sequences)
    bins[PACKED] = packed.micro_step * ranks + packed.rank
    work = attention.pairs(problem.tokens, problem.rank_pairs.shape[2])
    mean = (problem.rank_pairs.sum(dtype=np.int64) + work.sum()) / ranks
    for name, placed in bins.items():
        pairs = problem.rank_pairs
        if homes == HOMES[2]:
            home = _step_homes(_load(sequences, placed, ranks).sum(axis=2), ranks)
            pairs = rank_pairs(sequences.histograms, home, ranks)
        yield Schedule(
            sequences=sequences.name,
            ranks=ranks,
            limit=limit,
            micro_steps=len(packed.mini_batch),
            attention=attention != NO_ATTENTION,
            homes=homes,
            packing=name,
            cost=packing_cost(pairs, work, placed) / mean,
            bound=packed.bound / mean if homes != HOMES[2] else None,
        )


def _problem(
    sequences: Sequences, ranks: int, limit: str, homes: str, attention: AttentionCost
) -> PackingProblem:
    """Homes of the schedule are not known before it is: it is packed for those of the total."""
    _, layers, experts = sequences.histograms.shape
    home = contiguous_homes(layers, experts, ranks)
    if homes != HOMES[0]:
        home = _step_homes(sequences.histograms.sum(axis=0, dtype=np.int64)[None], ranks)
    number, unit = limit.split()
    return PackingProblem(
        tokens=sequences.tokens,
        rank_pairs=rank_pairs(sequences.histograms, home, ranks),
        mini_batch=np.zeros_like(sequences.tokens),
        token_budget=int(number) if unit == "tokens" else UNLIMITED,
        max_sequences=int(number) if unit == "sequence" else UNLIMITED,
        attention=attention,
    )


def _step_homes(expert_tokens: NDArray[np.int64], ranks: int) -> NDArray[np.int32]:
    """Of ``[M, L, E]``, on one node."""
    _, layers, experts = expert_tokens.shape
    return step_homes(expert_tokens, contiguous_homes(layers, experts, ranks), ranks, ranks)


def _load(sequences: Sequences, bins: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """The load of a schedule: int64 ``[M, L, P, E]``."""
    _, layers, experts = sequences.histograms.shape
    load = np.zeros((int(bins.max()) // ranks + 1, ranks, layers, experts), np.int64)
    np.add.at(load, (bins // ranks, bins % ranks), sequences.histograms)
    return load.transpose(0, 2, 1, 3)


def _replicas(trace: Sequences, ranks: int = 8) -> Iterator[Replicas]:
    """The recorded sequences, one a rank, with contiguous homes."""
    problem = _problem(trace, ranks, "1 sequence", HOMES[0], NO_ATTENTION)
    packed = propose_schedule(problem)
    bins = length_packings(problem.tokens, ranks, problem.token_budget, problem.max_sequences)
    bins[PACKED] = packed.micro_step * ranks + packed.rank
    for policy, slots, target in (("foremoe", 1, None), ("resident", 2, 1.02)):
        for name in ("first-fit", "even-mixed", PACKED):
            load = _load(trace, bins[name], ranks)
            stage = StageProblem(
                load=load,
                home=contiguous_homes(load.shape[1], load.shape[3], ranks),
                mini_batch=np.zeros(len(load), np.int32),
                topology=Topology(ranks, ranks),
                spare_slots=slots,
                target=target,
            )
            plans = list(POLICIES[policy](stage))
            tokens = np.stack([plan.rank_tokens() for plan in plans])
            before = [None, *(plan.replica_expert for plan in plans)]
            copies = sum(
                int(new_replicas(plan.replica_expert, earlier).sum())
                for plan, earlier in zip(plans, before, strict=False)
            )
            layers = len(plans) * load.shape[1]
            yield Replicas(
                packing=name,
                policy=policy,
                spare_slots=slots,
                target=target,
                cost=float(tokens.max(axis=2).sum() / (tokens.sum() / ranks)),
                replicas=sum(plan.replicas() for plan in plans) / layers,
                copies=copies / layers,
            )


def _timings() -> Iterator[Timing]:
    """Everything but counting the routing: packing by length, search, certificate."""
    for count in (512, 1024, 4096):
        sequences = _drawn(count)
        for ranks in (8, 32):
            problem = _problem(sequences, ranks, "8192 tokens", HOMES[0], NO_ATTENTION)
            began = time.process_time()
            propose_schedule(problem)
            yield Timing(count, ranks, time.process_time() - began)


def _markdown(schedules: list[Schedule], replicas: list[Replicas], timings: list[Timing]) -> str:
    """All tables, each under its heading."""
    cases: dict[tuple[object, ...], dict[str, Schedule]] = {}
    for s in schedules:
        key = (s.sequences, s.ranks, s.limit, s.homes, s.attention)
        cases.setdefault(key, {})[s.packing] = s
    names = ("first-fit", "first-fit-decreasing", "even", "even-mixed", PACKED)
    lines = ["## Packing", "", "Slowest rank over mean rank, without replicas.", ""]
    lines += rows(
        ["sequences", "P", "limit of a rank", "M", "homes", "attention", *names, "gain", "bound"],
        [_row(case, names) for case in cases.values()],
    )
    lines += ["Recorded routing, at least a tenth below the best packing by length.", ""]
    recorded = [case for case in cases.values() if "trace" in case[PACKED].sequences]
    lines += aims_table(_aim(case, names) for case in recorded)
    lines += ["With replicas, P = 8, one sequence a rank, contiguous homes.", ""]
    lines += rows(
        ["policy", "R", "target", "packing", "slowest / mean", "replicas", "copies"],
        [
            [r.policy, str(r.spare_slots), "best" if r.target is None else f"{r.target:g}",
             r.packing, f"{r.cost:.4f}", f"{r.replicas:.2f}", f"{r.copies:.3f}"]
            for r in replicas
        ],
    )  # fmt: skip
    lines += ["One core, 48 layers, up to 8192 tokens a rank.", ""]
    lines += rows(
        ["sequences", "P", "processor seconds"],
        [[str(t.sequences), str(t.ranks), f"{t.processor_seconds:.2f}"] for t in timings],
    )
    return "\n".join(lines)


def _aim(case: dict[str, Schedule], names: tuple[str, ...]) -> Aim:
    packed = case[PACKED]
    by_length = min(case[name].cost for name in names[:-1] if name in case)
    attention = ", attention" if packed.attention else ""
    name = (
        f"{packed.sequences}, P = {packed.ranks}, {packed.limit}, homes {packed.homes}{attention}"
    )
    return Aim(name, 0.9 * by_length, packed.cost, bound=packed.bound)


def _row(case: dict[str, Schedule], names: tuple[str, ...]) -> list[str]:
    """The gain is against the best and the worst packing by length."""
    packed = case[PACKED]
    by_length = [case[name].cost for name in names[:-1] if name in case]
    gains = [f"{packed.cost / cost - 1:.1%}" for cost in (min(by_length), max(by_length))]
    return [
        packed.sequences,
        str(packed.ranks),
        packed.limit,
        str(packed.micro_steps),
        packed.homes,
        "yes" if packed.attention else "no",
        *(f"{case[name].cost:.4f}" if name in case else "" for name in names),
        " to ".join(dict.fromkeys(gains)),
        "" if packed.bound is None else f"{packed.bound:.4f}",
    ]


if __name__ == "__main__":
    main()
