"""The planner's aims, each beside what this run measured."""

from collections.abc import Iterator

from benchmarks.planner_cases import NODE_PEERS
from benchmarks.planner_figures import Figure, only
from benchmarks.planner_time import StageTiming, Timing
from benchmarks.table import Aim

MICROSECONDS = {(32, 8): 40, (128, 32): 100, (256, 64): 250}  # by experts and ranks
HOMES = ("contiguous", "step")


def balance_aims(figures: list[Figure]) -> Iterator[Aim]:
    """Recorded routing, then routing drawn around recorded heat."""
    for ranks in (8, 16):
        trace = f"gpt-oss-20b trace, P = {ranks}"
        for homes, slots, mean, worst in (
            ("contiguous", 1, 1.002, None),
            ("step", 1, 1.001, 1.02),
            ("contiguous", 2, 1.0005, 1.002),
            ("step", 2, 1.0005, 1.002),
        ):
            yield from _balance(figures, trace, homes, slots, mean, worst)
    for ranks in (8, 32, 64):
        yield from _balance(figures, f"qwen3_30b_a3b heat, P = {ranks}", "step", 1, 1.002, 1.02)


def _balance(
    figures: list[Figure],
    workload: str,
    homes: str,
    slots: int,
    mean: float,
    worst: float | None,
) -> Iterator[Aim]:
    figure = only(figures, workload=workload, homes=homes, spare_slots=slots, policy="foremoe")
    name = f"{workload}, {homes} homes, R = {slots}: imbalance"
    yield Aim(f"{name}, mean", mean, figure.imbalance_mean, bound=figure.bound_mean)
    if worst is not None:
        yield Aim(f"{name}, worst", worst, figure.imbalance_max, bound=figure.bound_max)


def copy_aims(figures: list[Figure]) -> Iterator[Aim]:
    """Copies per layer and micro-step at target 1.02."""
    for ranks, homes, policy, slots, most in (
        (8, "contiguous", "foremoe", 1, 5.3),
        (8, "step", "foremoe", 1, 4.4),
        *((16, homes, "foremoe", 1, 10.5) for homes in HOMES),
        *((8, homes, "resident", 2, 0.6) for homes in HOMES),
        *((8, homes, "resident", 4, 0.35) for homes in HOMES),
        *((16, homes, "resident", 2, 1.2) for homes in HOMES),
        *((16, homes, "resident", 4, 0.7) for homes in HOMES),
    ):
        figure = only(
            figures,
            workload=f"gpt-oss-20b trace, P = {ranks}",
            homes=homes,
            policy=policy,
            spare_slots=slots,
        )
        planned = "alone" if policy == "foremoe" else "over time"
        name = f"P = {ranks}, {homes} homes, R = {slots}, {planned}: copies"
        yield Aim(name, most, figure.copies, "{:.2f}")


def node_aims(pairs: list[tuple[Figure, Figure]]) -> Iterator[Aim]:
    """The largest share of a peer's traffic between nodes, at the peer's balance.

    Without copies between nodes, all pairs that leave theirs without replicas still do.
    """
    for policy in NODE_PEERS:
        cases = [(peer, own) for peer, own in pairs if peer.policy == policy]
        if any(peer.copies_across_nodes == 0 for peer, _ in cases):
            copies = max(own.copies_across_nodes for _, own in cases)
            yield Aim(f"copies across nodes, as few as `{policy}`", 0, copies, "{:.1f}")
        else:
            copies = max(own.copies_across_nodes / peer.copies_across_nodes for peer, own in cases)
            yield Aim(f"copies across nodes, share of `{policy}`", 1, copies, "{:.0%}")
        crossing = max(own.pairs_across_nodes / peer.pairs_across_nodes for peer, own in cases)
        yield Aim(f"pairs across nodes, share of `{policy}`", 1, crossing, "{:.0%}")


def time_aims(timings: list[Timing], stages: list[StageTiming]) -> Iterator[Aim]:
    """One (micro-step, layer) planned alone, and stages planned over time."""
    for timing in timings:
        most = MICROSECONDS[timing.experts, timing.ranks]
        name = f"E = {timing.experts}, P = {timing.ranks}, nodes = {timing.nodes}, {timing.aim}: µs"
        yield Aim(name, most, timing.microseconds, "{:.0f}")
    for stage in stages:
        name = f"{stage.micro_steps} micro-steps, {stage.layers} layers, {stage.experts} experts"
        name += f" over time, {stage.aim}"
        yield Aim(f"{name}: s", 3, stage.seconds, "{:.2f}")
        yield Aim(f"{name}, first plan: ms", 20, stage.first_plan_milliseconds, "{:.1f}")
