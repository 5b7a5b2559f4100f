"""What ``foremoe top`` shows, cut to the height and width of the terminal."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from foremoe.rpc.status import (
    EpGroupStatus,
    LayerStatus,
    RuntimeStatus,
    StageDetail,
    StageStatus,
    StepStatus,
)

STEPS = 5
LEAST_ROWS = 3
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
    """One status to look at; ep_group is whose layers and ranks are shown, None for the worst."""

    status: RuntimeStatus
    ep_group: str | None = None
    notice: Text | None = None

    def with_notice(self, notice: Text) -> "Screen":
        """The same figures and why there are no newer ones."""
        return replace(self, notice=notice)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        yield self.notice or _heading(self.status)
        fixed = [_stages(self.status), _steps(self.status)]
        yield from fixed
        focus = _focus(self.status, self.ep_group)
        if focus is None:
            yield Text("no EP group has a plan yet", style="dim")
            return
        rows = 1 << 30
        if options.height is not None:
            used = 2 + sum(table.row_count + 4 for table in fixed)
            rows = max(options.height - used - 5, LEAST_ROWS)
        yield _side_by_side(_layers(focus, rows), _ranks(focus, rows), options.max_width)


def _heading(status: RuntimeStatus) -> Text:
    return Text(
        f"foremoe {status.version}  pid {status.pid}  up {_duration(status.uptime_seconds)}  "
        f"{status.stored_bytes / _MIB:.1f} of {status.stored_bytes_limit / _MIB:.0f} MiB held  "
        f"{sum(group.streaming for group in status.ep_groups)} plan streams",
        style="bold",
        overflow="ellipsis",
        no_wrap=True,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _table(title: str, *left: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    return table


def _right(table: Table, *headings: str) -> Table:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _stages(status: RuntimeStatus) -> Table:
    """The last stage of each kind, by EP group."""
    table = _right(
        _table("last stages", "EP group", "ranks", "stage"),
        *("step", "seconds", "imbalance", "exposed", *(f"{path} MiB/s" for path in PATHS)),
        *("degraded", "misses"),
    )
    for group in status.ep_groups:
        ranks = f"{group.streaming}/{group.ranks}"
        if not group.latest:
            table.add_row(group.ep_group, ranks, "-")
        for detail in group.latest:
            stage, speed = detail.status, throughput(detail.status)
            table.add_row(
                group.ep_group,
                ranks,
                stage.stage,
                str(detail.step),
                f"{stage.seconds:.2f}",
                _imbalance(
                    stage.imbalance_before, stage.imbalance_measured or stage.imbalance_after
                ),
                f"{stage.exposed_seconds * 1e3:.1f} ms",
                *(f"{speed.get(path, 0.0) / _MIB:.1f}" for path in PATHS),
                f"{stage.degraded}/{stage.micro_steps}",
                str(stage.agreement_misses),
            )
    return table


def _steps(status: RuntimeStatus) -> Table:
    """The newest steps, newest last."""
    table = _table("steps", "step", "state", "stages planned, reported")
    for step in (*status.released, *status.steps)[-STEPS:]:
        table.add_row(str(step.step), step.state, _progress(step))
    return table


def _progress(step: StepStatus) -> str:
    if not step.stages:
        return f"{step.sequences} sequences"
    return ", ".join(
        f"{stage.ep_group} {stage.stage} {stage.planned}, {stage.reported} of {stage.micro_steps}"
        for stage in step.stages
    )


def _focus(status: RuntimeStatus, ep_group: str | None) -> EpGroupStatus | None:
    """The named group, or the one whose last stage is balanced worst."""
    groups = [group for group in status.ep_groups if group.latest]
    if ep_group is not None:
        groups = [group for group in groups if group.ep_group == ep_group]
    return max(groups, key=lambda group: max(map(_stage_after, group.latest)), default=None)


def _stage_after(detail: StageDetail) -> float:
    return detail.status.imbalance_measured or detail.status.imbalance_after


def _layers(group: EpGroupStatus, rows: int) -> Table:
    """Imbalance before and after by layer; the worst layers if there is no room for all."""
    stages = [detail.status.stage for detail in group.latest]
    by_stage = [detail.layers for detail in group.latest]
    lines = list(zip(*by_stage, strict=True))
    shown = sorted(lines, key=lambda line: max(map(_after, line)), reverse=True)[:rows]
    left_out = len(lines) - len(shown)
    title = f"imbalance of {group.ep_group} by layer"
    if left_out:
        title += f", {left_out} better ones left out"
    table = _right(_table(title), "layer")
    for stage in stages:
        _right(table, str(stage), "exposed")
    for line in sorted(shown, key=lambda line: line[0].layer):
        cells = [
            cell
            for layer in line
            for cell in (
                _imbalance(layer.imbalance_before, _after(layer)),
                f"{layer.exposed_seconds * 1e3:.1f} ms",
            )
        ]
        table.add_row(str(line[0].layer), *cells)
    return table


def _after(layer: LayerStatus) -> float:
    return layer.imbalance_measured or layer.imbalance_after


def _ranks(group: EpGroupStatus, rows: int) -> Table:
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
                    f"{rank.exposed_seconds * 1e3:.1f} ms",
                )
            )
        ]
        table.add_row(*cells)
    return table


def _imbalance(before: float, after: float) -> Text:
    style = "red" if after > 1.25 else "yellow" if after > 1.1 else "green"
    return Text.assemble(f"{before:.3f} -> ", (f"{after:.3f}", style))


def _side_by_side(left: Table, right: Table, width: int) -> RenderableType:
    console = Console(width=width)
    needed = sum(console.measure(table).maximum for table in (left, right)) + 4
    return Columns([left, right], padding=(0, 4)) if needed <= width else Group(left, right)
