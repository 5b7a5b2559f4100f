"""What ran when: compute, copies by path, planning, and in red what was waited for."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from foremoe.report.chart import Chart, Numbers, new_drawing
from foremoe.report.style import ACCENT, FAINT, GRID, INK, MUTED, RED, bare
from foremoe.timeline.span import COMPUTE, SECOND, Span

_TRACK = re.compile(r"(?P<kind>.+?)(?: (?:into )?rank (?P<rank>\d+))?$")
PLANNING = "planning"
WAITED_FOR = ("copies", "gradients", "plans")  # names of exposed spans; other names are copies
COLOURS = {
    "other": GRID,
    "agreement": FAINT,
    "dispatch": FAINT,
    "compute": MUTED,
    "exposed": RED,
    PLANNING: INK,
}
SHOWN_NS = 5e4  # less is 0.0 ms
RESOLUTION = 1500  # what is closer than a part of this is drawn as one
MAX_BOXES = 2500  # of a kind; more are drawn as one image, to keep the page small


class Lane(NamedTuple):
    """A band of the figure, and the rank within it; -1 where there is one for all ranks."""

    band: str
    rank: int


def timeline_chart(
    stage: str,
    spans: Sequence[Span],
    title: str = "",
    shown_part: str = "the whole stage",
    sooner: Sequence[Span] = (),
) -> Chart:
    """All spans, and below them the micro-step that waited longest.

    spans: those of the compute stream begin at 0. title: if not ``stage``. shown_part: of it.
    sooner: what was planned long before, drawn above.
    """
    lanes = _lanes(spans)
    by_kind = _by_kind(spans)
    waits = [_exposed(spans, what) for what in WAITED_FOR]
    exposed = {index: sum(wait[index] for wait in waits) for index in waits[0]}
    for_copies = waits[0]
    windows = micro_step_windows(spans)
    shown = max(windows, key=lambda index: (for_copies[index], _copied_in(spans, windows[index])))
    bands = len({lane.band for lane in lanes})
    heights = [1] * bool(sooner) + [bands, bands]
    drawing = new_drawing(2.0 + 0.5 * sum(heights) + 0.4 * bool(sooner))
    *before, whole, closer = drawing.subplots(len(heights), 1, height_ratios=heights)
    if sooner:
        _draw_sooner(before[0], sooner)
    start = min(span.start_ns for span in spans)
    end = max(span.end_ns for span in spans)
    _draw(whole, by_kind, lanes, (start, end), "whole")
    whole.set_title(f"{shown_part}, {(end - start) / 1e6:.1f} ms")
    _draw(closer, by_kind, lanes, windows[shown], "closer")
    ranks = len({lane for lane in lanes if lane.band == "compute"})
    waited = exposed[shown] / ranks / 1e6
    closer.set_title(f"micro-step {shown}, with {waited:.2f} ms exposed")
    closer.set_xlabel("ms since the stage began")
    for axes in (*before, whole, closer):
        ticks = axes.get_xaxis()
        ticks.set_major_formatter(lambda value, _: f"{value / 1e6:g}")
    finding = _finding(title or stage, waits, ranks, end - start)
    return Chart(
        "timeline-" + re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-"),
        finding,
        "Above the whole stage, below the micro-step that waited longest for copies, or had most "
        "of them. Strong grey: expert compute; faint grey: dispatch and other work; blue: copies, "
        "a line for each receiving rank; red: time that compute waited for a copy or a gradient.",
        f"Time line of {len(spans)} spans. {finding}.",
        drawing,
        Numbers(
            ("stream", "spans", "busy ms"),
            [
                (name, len(found), sum(s.end_ns - s.start_ns for s in found) / 1e6)
                for name, found in _by_kind([*sooner, *spans]).items()
            ],
        ),
    )


def _finding(title: str, waits: Sequence[Mapping[int, int]], ranks: int, length: int) -> str:
    """Of nanoseconds waited by micro-step, for each of WAITED_FOR, by all ranks together."""
    means = [sum(wait.values()) / ranks for wait in waits]
    if not any(means):
        return f"{title.capitalize()}: no time is exposed, all copies hide behind compute"
    parts = [
        f"{mean / 1e6:.1f} ms for {name}"
        for name, mean in zip(WAITED_FOR, means, strict=True)
        if mean >= SHOWN_NS or name != "plans"
    ]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]])
    each = " of a rank" if ranks > 1 else ""
    return f"{title.capitalize()}: {sum(means) / length:.2%} of the time{each} is exposed, {listed}"


def needed_seconds(spans: Sequence[Span]) -> list[float]:
    """When each micro-step began, in seconds since the first one; by index from 0."""
    windows = micro_step_windows(spans)
    first = min(start for start, _ in windows.values())
    return [(windows[index][0] - first) / SECOND for index in sorted(windows)]


def micro_step_windows(spans: Sequence[Span]) -> dict[int, tuple[int, int]]:
    """When each micro-step's layers began and ended."""
    windows: dict[int, tuple[int, int]] = {}
    for span in spans:
        if is_compute(span):
            start, end = windows.get(span.micro_step, (span.start_ns, span.end_ns))
            windows[span.micro_step] = (min(start, span.start_ns), max(end, span.end_ns))
    return windows


def _copied_in(spans: Sequence[Span], window: tuple[int, int]) -> int:
    """Copies that began in the window."""
    return sum(window[0] <= s.start_ns < window[1] and not is_compute(s) for s in spans)


def is_compute(span: Span) -> bool:
    """Whether it ran on the stream that waits for copies."""
    return _kind(span) in COMPUTE


def _kind(span: Span) -> str:
    match = _TRACK.match(span.track)
    return match["kind"] if match else span.track


def _lane(span: Span) -> Lane:
    match = _TRACK.match(span.track)
    kind, rank = (match["kind"], match["rank"]) if match else (span.track, None)
    return Lane("compute" if kind in COMPUTE else kind, -1 if rank is None else int(rank))


def _lanes(spans: Sequence[Span]) -> dict[Lane, tuple[float, float]]:
    """Bottom and height of every lane; bands are one high, planning and compute on top."""
    found = sorted({_lane(span) for span in spans})
    bands = sorted(
        {lane.band for lane in found}, key=lambda b: (b != "planning", b != "compute", b)
    )
    places = {}
    for position, band in enumerate(bands):
        inside = [lane for lane in found if lane.band == band]
        height = 0.8 / len(inside)
        for row, lane in enumerate(inside):
            places[lane] = (position + 0.1 + row * height, height * (0.8 if len(inside) > 1 else 1))
    return places


def _by_kind(spans: Sequence[Span]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_ns):
        found.setdefault(_kind(span), []).append(span)
    drawn_last = {kind: COMPUTE.index(kind) if kind in COMPUTE else -1 for kind in found}
    return {kind: found[kind] for kind in sorted(found, key=lambda kind: (drawn_last[kind], kind))}


def _exposed(spans: Sequence[Span], what: str) -> dict[int, int]:
    """Nanoseconds waited for one of WAITED_FOR in each micro-step."""
    waited = {span.micro_step: 0 for span in spans if is_compute(span)}
    for span in spans:
        if _kind(span) == "exposed" and _waited_for(span) == what:
            waited[span.micro_step] += span.end_ns - span.start_ns
    return waited


def _waited_for(span: Span) -> str:
    return span.name if span.name in WAITED_FOR else "copies"


def _draw(
    axes: Axes,
    by_kind: Mapping[str, Sequence[Span]],
    lanes: Mapping[Lane, tuple[float, float]],
    window: tuple[int, int],
    name: str,
) -> None:
    """Boxes of a kind are one path, with the id ``name-kind``."""
    start, end = window
    finest = (end - start) / RESOLUTION
    for kind, spans in by_kind.items():
        boxes: list[tuple[float, float, float, float]] = []
        for lane, runs in _merged(spans, start, end, finest).items():
            bottom, height = lanes[lane]
            boxes += [(a, b, bottom, bottom + height) for a, b in runs]
        if boxes:
            colour = COLOURS.get(kind, ACCENT)
            patch = PathPatch(_outline(boxes), facecolor=colour, linewidth=0, gid=f"{name}-{kind}")
            patch.set_rasterized(len(boxes) > MAX_BOXES)
            axes.add_patch(patch)
    bands = {lane.band: int(bottom) for lane, (bottom, _) in lanes.items()}
    for place in bands.values():
        axes.axhspan(place + 0.08, place + 0.9, color=GRID, alpha=0.35, linewidth=0, zorder=0)
    axes.set_yticks([place + 0.5 for place in bands.values()], list(bands))
    axes.set_ylim(len(bands), 0)
    axes.set_xlim(start, end)
    bare(axes)


def _draw_sooner(axes: Axes, spans: Sequence[Span]) -> None:
    """Planning before the stage began, on a scale of its own."""
    start, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
    _draw(axes, _by_kind(spans), _lanes(spans), (start, end), "sooner")
    length, ago = (end - start) / 1e6, -end / 1e6
    axes.set_title(f"planning, {length:.1f} ms, which ended {ago:.1f} ms before the stage began")


def _merged(
    spans: Sequence[Span], start: int, end: int, finest: float
) -> dict[Lane, list[tuple[float, float]]]:
    """Runs of each lane inside the window, at least ``finest`` long; close ones are one."""
    runs: dict[Lane, list[tuple[float, float]]] = {}
    for span in spans:
        low, high = float(max(span.start_ns, start)), float(min(span.end_ns, end))
        if high <= low:
            continue
        high = max(high, low + finest)
        lane = runs.setdefault(_lane(span), [])
        if lane and low - lane[-1][1] < finest:
            lane[-1] = (lane[-1][0], max(high, lane[-1][1]))
        else:
            lane.append((low, high))
    return runs


def _outline(boxes: Sequence[tuple[float, float, float, float]]) -> Outline:
    """All boxes as one path."""
    corners = [
        ((low, bottom), (high, bottom), (high, top), (low, top), (low, bottom))
        for low, high, bottom, top in boxes
    ]
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY] * len(boxes)
    return Outline(np.array(corners).reshape(-1, 2), codes)
