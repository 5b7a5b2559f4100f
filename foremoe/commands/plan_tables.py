"""The tables that ``foremoe plan`` prints."""

from typing import Any, Literal

from rich.table import Table


def _title(record: dict[str, Any]) -> str:
    target = "" if record["target"] is None else f", target {record['target']}"
    budget = record["token_budget"]
    schedule = {"given": "", "similar": "ordered "}[record["order"]] + record["schedule"]
    size = f"{record['sequences_per_micro_step']} sequences"
    if budget is not None:
        size = f"at most {budget} tokens a rank"
    return (
        f"{record['micro_steps']} micro-steps of {size}, {schedule} schedule, "
        f"{record['layers']} layers, {record['experts']} experts on {record['ranks']} ranks "
        f"({record['nodes']} {'node' if record['nodes'] == 1 else 'nodes'}), "
        f"{record['homes']} homes, "
        f"{record['spare_slots']} spare slots{target}"
    )


def table(record: dict[str, Any]) -> Table:
    """One policy, one line for each figure."""
    rows = Table(title=_title(record))
    rows.add_column(f"policy {record['policy']}, by micro-step and layer")
    for name in ("mean", "p99", "max"):
        rows.add_column(name, justify="right")
    for label, key in (("imbalance before", "before"), ("imbalance after", "after")):
        figures = record[f"imbalance_{key}"]
        rows.add_row(label, *(f"{figures[name]:.4f}" for name in ("mean", "p99", "max")))
    gap = record["bound_gap"]
    rows.add_row("above the lower bound", f"{gap['mean']:.3%}", "", f"{gap['max']:.3%}")
    if record["packing"] and record["packing"]["length_only_cost"]:
        cost, by_length = record["packing"]["cost"], record["packing"]["length_only_cost"]
        rows.add_row("slowest ranks, to packing by length", f"{cost / by_length - 1:.2%}", "", "")
    for label, key in (("replicas", "replicas_per_layer"), ("copies", "copies_per_layer")):
        rows.add_row(label, f"{record[key]['mean']:.2f}", "", str(record[key]["max"]))
    for name in ("before", "after"):
        if seconds := record[f"estimated_seconds_{name}"]:
            rows.add_row(f"estimated stage {name}", f"{seconds['total']:.3f} s", "", "")
    rows.add_row("planning time", f"{record['planning_microseconds_per_layer']:.1f} µs", "", "")
    return rows


def comparison(records: list[dict[str, Any]]) -> Table:
    """All policies, one line for each."""
    rows = Table(title=_title(records[0]))
    estimated = records[0]["model"] is not None
    columns = ["policy", "imbalance", "p99", "max", "gap", "copies", "planning"]
    for name in [*columns, "stage"] if estimated else columns:
        justify: Literal["left", "right"] = "left" if name == "policy" else "right"
        rows.add_column(name, justify=justify, overflow="fold")
    before = records[0]["imbalance_before"]
    rows.add_row(
        "before",
        *(f"{before[name]:.4f}" for name in ("mean", "p99", "max")),
        *("", "", ""),
        *_stage_seconds(records[0], "before"),
    )
    for record in records:
        after = record["imbalance_after"]
        rows.add_row(
            record["policy"],
            *(f"{after[name]:.4f}" for name in ("mean", "p99", "max")),
            f"{record['bound_gap']['mean']:.3%}",
            f"{record['copies_per_layer']['mean']:.2f}",
            f"{record['planning_microseconds_per_layer']:.1f} µs",
            *_stage_seconds(record, "after"),
        )
    return rows


def _stage_seconds(record: dict[str, Any], name: str) -> list[str]:
    """The table's last cell, where there are estimates."""
    seconds = record[f"estimated_seconds_{name}"]
    return [f"{seconds['total']:.3f} s"] if seconds else []
