"""The planner's figures as tables in Markdown."""

from benchmarks.planner_aims import balance_aims, copy_aims, node_aims, time_aims
from benchmarks.planner_cases import ORDERS, PEERS, SLOTS, TARGETS, WAYS
from benchmarks.planner_figures import Figure, only
from benchmarks.planner_time import ALONE, OVER_TIME, Part, Point, StageTiming, Timing
from benchmarks.table import aims_table, rows
from foremoe.planner.preset import ACTIVATION_BYTES, model_preset


def balance_tables(figures: list[Figure]) -> list[str]:
    """Mean imbalance by policy; mean, p99 and worst of foremoe beside the least possible."""
    cases = _by_case(figures)
    names = ("none", *PEERS, "foremoe")
    lines = ["### Balance", ""]
    lines += rows(
        ["mean imbalance", "homes", "R", *(f"`{name}`" for name in names)],
        [
            [workload, homes, str(slots),
             *(f"{found[name].imbalance_mean:.4f}" if name in found else "" for name in names)]
            for (workload, homes, slots), found in cases.items()
        ],
    )  # fmt: skip
    lines += rows(
        ["`foremoe`", "homes", "R", "mean", "p99", "worst", "least mean", "least worst", "copies"],
        [
            [workload, homes, str(slots), f"{own.imbalance_mean:.4f}", f"{own.imbalance_p99:.4f}",
             f"{own.imbalance_max:.4f}", f"{own.bound_mean:.4f}", f"{own.bound_max:.4f}",
             f"{own.copies:.2f}"]
            for (workload, homes, slots), found in cases.items()
            for own in (found["foremoe"],)
        ],
    )  # fmt: skip
    return lines + aims_table(balance_aims(figures))


def _by_case(figures: list[Figure]) -> dict[tuple[str, str, int], dict[str, Figure]]:
    """Workload, homes and spare slots; then the policy."""
    cases: dict[tuple[str, str, int], dict[str, Figure]] = {}
    for figure in figures:
        case = (figure.workload, figure.homes, figure.spare_slots)
        cases.setdefault(case, {})[figure.policy] = figure
    return cases


def copy_tables(over_time: list[Figure], frontier: list[Figure]) -> list[str]:
    """Copies at target 1.02, and by target."""
    lines = ["### Copies at target 1.02", ""]
    lines += rows(
        ["copies", "homes", "R", *WAYS.values(), "replicas", "imbalance", "worst"],
        [
            [workload, homes, str(slots), *(f"{found[policy].copies:.3f}" for policy in WAYS),
             f"{last.replicas:.2f}", f"{last.imbalance_mean:.4f}", f"{last.imbalance_max:.4f}"]
            for (workload, homes, slots), found in _by_case(over_time).items()
            for last in (found["resident"],)
        ],
    )  # fmt: skip
    lines += aims_table(copy_aims(over_time))
    lines += ["### Frontier", ""]
    lines += rows(
        ["copies at target", "R", *(f"{target:g}" for target in TARGETS)],
        [
            [way, str(slots)]
            + [
                f"{only(frontier, policy=policy, spare_slots=slots, target=target).copies:.2f}"
                for target in TARGETS
            ]
            for policy, way in WAYS.items()
            for slots in SLOTS
        ],
    )
    return lines


def order_tables(figures: list[tuple[str, Figure]]) -> list[str]:
    """Copies by the order of the micro-steps."""
    cases: dict[tuple[str, int], dict[str, Figure]] = {}
    for order, figure in figures:
        cases.setdefault((figure.workload, figure.spare_slots), {})[order] = figure
    lines = ["### Order of micro-steps", ""]
    return lines + rows(
        ["copies over time at target 1.02", "R", *ORDERS],
        [
            [workload, str(slots), *(f"{found[order].copies:.3f}" for order in ORDERS)]
            for (workload, slots), found in cases.items()
        ],
    )


def node_tables(pairs: list[tuple[Figure, Figure]]) -> list[str]:
    """What crosses nodes: each peer beside foremoe at its balance."""
    lines = ["### Between nodes", ""]
    lines += rows(
        ["", "homes", "R", "imbalance", "its copies, pairs, MB", "`foremoe`: copies, pairs, MB"],
        [
            [f"`{peer.policy}`", peer.homes, str(peer.spare_slots), f"{peer.imbalance_mean:.4f}",
             _crossing(peer), _crossing(own)]
            for peer, own in pairs
            if own.policy == "foremoe"
        ],
    )  # fmt: skip
    lines += rows(
        ["at target 1.02", "R", "alone: copies, pairs, MB", "over time: copies, pairs, MB"],
        [
            [f"{alone.homes} homes", str(alone.spare_slots), _crossing(alone), _crossing(own)]
            for alone, own in pairs
            if own.policy == "resident"
        ],
    )
    return lines + aims_table(node_aims(pairs))


def _crossing(figure: Figure) -> str:
    """Copies, share of pairs, and bytes of one forward pass: weights, states there and back."""
    model = model_preset("qwen3-30b-a3b")
    states = figure.pairs_across_nodes * 2 * ACTIVATION_BYTES * model.hidden
    megabytes = (figure.copies_across_nodes * model.expert_bytes + states) / 1e6
    share = figure.pairs_across_nodes / figure.pairs
    return f"{figure.copies_across_nodes:.1f}, {share:.1%}, {megabytes:.0f}"


def time_tables(
    timings: list[Timing], stages: list[StageTiming], parts: list[Part], points: list[Point]
) -> list[str]:
    """Processor time, where it goes, and how it grows."""
    lines = ["### Time", ""]
    lines += aims_table(time_aims(timings, stages))
    lines += rows(
        ["E", "P", "planned", "part", "µs", "share"],
        [
            [str(p.experts), str(p.ranks), p.planned, p.part, f"{p.microseconds:.1f}",
             f"{p.microseconds / _whole(parts, p):.0%}"]
            for p in parts
        ],
    )  # fmt: skip
    found = {(p.axis, p.value, p.planned): p.microseconds for p in points}
    cases = dict.fromkeys((point.axis, point.value) for point in points)
    lines += rows(
        ["", "", f"{ALONE}: µs", f"{OVER_TIME}: µs"],
        [
            [axis, str(value), f"{found[axis, value, ALONE]:.0f}",
             f"{found[axis, value, OVER_TIME]:.0f}"]
            for axis, value in cases
        ],
    )  # fmt: skip
    return lines


def _whole(parts: list[Part], part: Part) -> float:
    case = (part.experts, part.ranks, part.planned)
    return sum(p.microseconds for p in parts if (p.experts, p.ranks, p.planned) == case)
