"""What the planner's benchmark measures, and its tables in Markdown."""

from dataclasses import dataclass

TARGETS = (1.005, 1.01, 1.02, 1.03, 1.05, 1.10)


@dataclass(frozen=True)
class Figure:
    """What one policy reached on one workload; means and maxima over (micro-step, layer)."""

    workload: str
    homes: str
    policy: str
    spare_slots: int
    target: float | None
    nodes: int
    imbalance_mean: float
    imbalance_p99: float
    imbalance_max: float
    gap_to_bound_mean: float
    replicas: float
    copies: float
    copies_across_nodes: float
    tokens_across_nodes: float  # share of all pairs dispatched to another node


@dataclass(frozen=True)
class Timing:
    """Microseconds for one (micro-step, layer), everything included."""

    case: str
    aim: str  # the best balance, a target, or the least estimated time
    microseconds: float


@dataclass(frozen=True)
class StageTiming:
    """A whole stage planned over time."""

    micro_steps: int
    layers: int
    experts: int
    ranks: int
    spare_slots: int
    seconds: float
    first_plan_milliseconds: float


def markdown(
    balance: list[Figure],
    over_time: list[Figure],
    frontier: list[Figure],
    nodes: list[Figure],
    timings: list[Timing],
    stage: StageTiming,
) -> str:
    """All tables, each under its heading."""
    lines = ["## Balance", "", "Best balance, every micro-step planned alone.", ""]
    lines += rows(
        ["workload", "homes", "policy", "R", "imbalance", "p99", "max", "above bound", "copies"],
        [
            [f.workload, f.homes, f.policy, str(f.spare_slots), f"{f.imbalance_mean:.4f}",
             f"{f.imbalance_p99:.4f}", f"{f.imbalance_max:.4f}", f"{f.gap_to_bound_mean:.3%}",
             f"{f.copies:.2f}"]
            for f in balance
        ],
    )  # fmt: skip
    lines += ["## Copies", "", "Target 1.02; a copy is new on its rank.", ""]
    lines += rows(
        ["workload", "homes", "planned", "R", "imbalance", "max", "replicas", "copies"],
        [
            [f.workload, f.homes, "alone" if f.policy == "foremoe" else "over time",
             str(f.spare_slots), f"{f.imbalance_mean:.4f}", f"{f.imbalance_max:.4f}",
             f"{f.replicas:.2f}", f"{f.copies:.3f}"]
            for f in over_time
        ],
    )  # fmt: skip
    lines += ["## Frontier", "", f"{frontier[0].workload}: copies by target.", ""]
    found = {(f.policy, f.spare_slots, f.target): f.copies for f in frontier}
    lines += rows(
        ["planned", "R", *(f"{target:g}" for target in TARGETS)],
        [
            [name, str(slots), *(f"{found[policy, slots, target]:.2f}" for target in TARGETS)]
            for policy, name in (("foremoe", "alone"), ("resident", "over time"))
            for slots in (1, 2, 4)
        ],
    )
    lines += [
        "## Nodes",
        "",
        f"{nodes[0].workload}, 8 nodes of 8 ranks. After each"
        " peer, foremoe with the peer's mean imbalance as its target.",
        "",
    ]
    lines += rows(
        ["policy", "homes", "R", "imbalance", "copies", "across nodes", "tokens across nodes"],
        [
            [f.policy, f.homes, str(f.spare_slots), f"{f.imbalance_mean:.4f}", f"{f.copies:.2f}",
             f"{f.copies_across_nodes:.2f}", f"{f.tokens_across_nodes:.1%}"]
            for f in nodes
        ],
    )  # fmt: skip
    lines += ["## Time", "", "One core, by micro-step and layer, everything included.", ""]
    lines += rows(
        ["case", "aim", "µs"],
        [[t.case, t.aim, f"{t.microseconds:.0f}"] for t in timings],
    )
    lines += [
        f"Over time: {stage.micro_steps} micro-steps of {stage.layers} layers, {stage.experts} "
        f"experts on {stage.ranks} ranks in {stage.seconds:.2f} s, the first plan after "
        f"{stage.first_plan_milliseconds:.1f} ms.",
        "",
    ]
    return "\n".join(lines)


def rows(header: list[str], cells: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    return [*lines, ""]
