"""A chapter on ``foremoe plan --json``: policies side by side on the same loads."""

from pathlib import Path
from typing import Any

from foremoe.report.chart import Chapter, Chart, Fact, Numbers, new_drawing
from foremoe.report.record import Record
from foremoe.report.style import ACCENT, FAINT, INK, MUTED, horizontal_grid

OURS = ("foremoe", "resident")


def policies_chapter(path: Path, content: Any) -> Chapter:
    """Of one record or a list of them; InvalidInputError."""
    records = [Record(path, one) for one in (content if isinstance(content, list) else [content])]
    first = records[0]
    before = first.record("imbalance_before").number("mean")
    return Chapter(
        f"{first.number('micro_steps'):.0f} micro-steps, {first.number('layers'):.0f} layers, "
        f"{first.number('experts'):.0f} experts on {first.number('ranks'):.0f} ranks, "
        f"{first.number('spare_slots'):.0f} spare slots",
        str(path),
        [Fact("imbalance-before", "imbalance before", before, f"{before:.3f}")],
        [_chart(records, before)],
    )


def _chart(records: list[Record], before: float) -> Chart:
    names = [record.text("policy") for record in records]
    after = [record.record("imbalance_after").number("mean") for record in records]
    worst = [record.record("imbalance_after").number("p99") for record in records]
    copies = [record.record("copies_per_layer").number("mean") for record in records]
    micros = [record.number("planning_microseconds_per_layer") for record in records]
    order = sorted(range(len(names)), key=lambda place: after[place])
    drawing = new_drawing(1.4 + 0.26 * len(names))
    axes, beside = drawing.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows = range(len(names))
    axes.hlines(rows, [after[i] for i in order], [worst[i] for i in order], color=FAINT)
    for row, place in enumerate(order):
        colour = ACCENT if names[place] in OURS else MUTED
        axes.plot(after[place], row, "o", color=colour)
        beside.barh(row, copies[place], color=colour, height=0.5)
        beside.text(copies[place], row, f" {copies[place]:.2f}", va="center", color=INK)
    axes.axvline(before, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_xlim(0.97)
    axes.set_yticks(rows, [names[i] for i in order])
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlabel("imbalance: mean, line to the 99th percentile; dashed: before")
    beside.set_xlabel("copies per layer and micro-step")
    beside.margins(x=0.15)
    for each in (axes, beside):
        horizontal_grid(each)
    best = order[0]
    finding = (
        f"{names[best].capitalize()} balances best: {after[best]:.4f}, from {before:.3f}, "
        f"with {copies[best]:.2f} copies per layer and micro-step"
    )
    return Chart(
        "policies",
        finding,
        "All policies planned the same loads. Left: imbalance; right: what it costs in copies.",
        f"Dot plot of {len(names)} policies. {finding}.",
        drawing,
        Numbers(
            ("policy", "imbalance", "p99", "copies", "planning µs per layer"),
            [(names[i], after[i], worst[i], copies[i], micros[i]) for i in order],
        ),
    )
