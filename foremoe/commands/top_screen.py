"""What ``foremoe top`` shows, cut to the height and width of the terminal."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from operator import attrgetter

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from foremoe.rpc.status import (
    EpGroupStatus,
    LayerStatus,
    RuntimeStatus,
    StageStatus,
    StepStatus,
)

STEPS = 5
LEAST_ROWS = 3
GAP = 4
NORMAL, WIDE = 78, 100  # columns of a terminal
PATHS = ("host", "peer", "gradient")
_MIB = float(1 << 20)


def throughput(stage: StageStatus) -> dict[str, float]:
    """Bytes per second on each path, over the wall time of the stage's micro-steps."""
    return {
        path.path: path.copied_bytes / stage.seconds if stage.seconds else 0.0
        for path in stage.paths
    }


@dataclass(frozen=True)
class Screen:
    """One status to look at.

    ep_group: whose layers and ranks are shown, None for the group that is balanced worst.
    fit: leave out what is higher than the terminal. notice: why there are no newer figures.
    """

    status: RuntimeStatus
    ep_group: str | None = None
    fit: bool = False
    notice: str | None = None

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        width, height = options.max_width, options.max_height if self.fit else None
        groups = sorted(self.status.ep_groups, key=attrgetter("worst_imbalance"), reverse=True)
        stages = _stages(groups, width, limit=height and height // 4)
        steps = _steps(self.status)
        yield _heading(self.status) if self.notice is None else _line(self.notice, "bold red")
        yield stages
        yield from steps
        focus = next((g for g in groups if self.ep_group in (None, g.ep_group) and g.latest), None)
        if focus is None:
            yield Text("no plan has been made yet", style="dim")
            return
        left = None if height is None else height - 1 - _height(stages) - len(steps)
        yield _layers_and_ranks(focus, width, left)


def _heading(status: RuntimeStatus) -> Text:
    return _line(
        f"foremoe {status.version}  pid {status.pid}  up {_duration(status.uptime_seconds)}  "
        f"{status.stored_bytes / _MIB:.1f} of {status.stored_bytes_limit / _MIB:.0f} MiB held  "
        f"{sum(group.streaming for group in status.ep_groups)} plan streams",
        "bold",
    )


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _table(title: str, *left: str) -> Table:
    table = Table(
        title=_line(title, "bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in left:
        table.add_column(heading, overflow="ellipsis", min_width=4)
    return table


def _right(table: Table, *headings: str) -> Table:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _height(table: Table) -> int:
    return table.row_count + 2  # title and headings


def _stages(groups: list[EpGroupStatus], width: int, limit: int | None) -> Table:
    """The last stage of each kind, by EP group; a narrow terminal has not all columns."""
    lines = [(group, detail) for group in groups for detail in group.latest]
    title = "last stages, paths in MiB/s"
    if limit is not None and len(lines) > limit:
        title += f", worst {limit} of {len(lines)}"
    table = _table(title, "group")
    table.add_column("stage", no_wrap=True, min_width=9)
    _right(table, "imbalance", "exposed", *PATHS)
    if width >= NORMAL:
        _right(table, "degraded", "misses")
    if width >= WIDE:
        _right(table, "ranks", "step", "seconds")
    for group, detail in lines[:limit]:
        stage, speed = detail.status, throughput(detail.status)
        cells: list[str | Text] = [
            group.ep_group,
            stage.stage,
            _imbalance(stage.imbalance_before, detail.imbalance),
            _milliseconds(stage.exposed_seconds),
            *(f"{speed.get(path, 0.0) / _MIB:.1f}" for path in PATHS),
            f"{stage.degraded}/{stage.micro_steps}",
            str(stage.agreement_misses),
            f"{group.streaming}/{group.ranks}",
            str(detail.step),
            f"{stage.seconds:.2f}",
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def _steps(status: RuntimeStatus) -> list[Text]:
    """The newest steps, newest last."""
    lines = [
        _line(f"{step.step:>6} {step.state:10} {_progress(step)}")
        for step in (*status.released, *status.steps)[-STEPS:]
    ]
    return [_line("steps: plans made, micro-steps reported", "bold"), *lines]


def _progress(step: StepStatus) -> str:
    if not step.stages:
        return f"{step.sequences} sequences"
    return ", ".join(
        f"{stage.ep_group} {stage.stage} {stage.planned}, {stage.reported} of {stage.micro_steps}"
        for stage in step.stages
    )


def _layers_and_ranks(group: EpGroupStatus, width: int, height: int | None) -> RenderableType:
    """Beside each other where there is room, else below each other."""
    rows = None if height is None else max(height - 2, LEAST_ROWS)
    layers, ranks = _layers(group, rows), _ranks(group, rows)
    measure = Console(width=width).measure
    if measure(layers).maximum + measure(ranks).maximum + GAP <= width:
        return Columns([layers, ranks], padding=(0, GAP))
    if rows is None:
        return Group(layers, ranks)
    ranks = _ranks(group, LEAST_ROWS)
    room = rows - _height(ranks)
    return Group(_layers(group, room), ranks) if room >= LEAST_ROWS else layers


def _layers(group: EpGroupStatus, rows: int | None) -> Table:
    """Imbalance before and after by layer; the worst layers if there is no room for all."""
    stages = [detail.status.stage for detail in group.latest]
    by_stage = [detail.layers for detail in group.latest]
    lines = list(zip(*by_stage, strict=True))
    shown = sorted(lines, key=lambda line: max(map(_after, line)), reverse=True)[:rows]
    what = f"worst {len(shown)} of {len(lines)} layers" if len(shown) < len(lines) else "layers"
    table = _right(_table(f"imbalance of {what} of {group.ep_group}"), "layer")
    for stage in stages:
        _right(table, str(stage), "exposed")
    for line in sorted(shown, key=lambda line: line[0].layer):
        cells = [
            cell
            for layer in line
            for cell in (
                _imbalance(layer.imbalance_before, _after(layer)),
                _milliseconds(layer.exposed_seconds),
            )
        ]
        table.add_row(str(line[0].layer), *cells)
    return table


def _after(layer: LayerStatus) -> float:
    return layer.imbalance_measured or layer.imbalance_after


def _ranks(group: EpGroupStatus, rows: int | None) -> Table:
    """The ranks that computed most in each stage: the others wait for them."""
    table = _table(f"slowest ranks of {group.ep_group}")
    for detail in group.latest:
        _right(table, detail.status.stage, "load", "exposed")
    columns = [detail.busiest_ranks[:rows] for detail in group.latest]
    for line in zip_longest(*columns):
        cells = [
            cell
            for rank in line
            for cell in (
                ("", "", "")
                if rank is None
                else (
                    f"rank {rank.rank}",
                    f"{rank.relative_load:.3f}",
                    _milliseconds(rank.exposed_seconds),
                )
            )
        ]
        table.add_row(*cells)
    return table


def _imbalance(before: float, after: float) -> Text:
    style = "red" if after > 1.25 else "yellow" if after > 1.1 else "green"
    return Text.assemble(f"{before:.3f} -> ", (f"{after:.3f}", style))


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
