"""The daemon's figures as Prometheus metrics; docs/operations.md says what each of them means.

Labels are bounded: EP groups by EpGroups, stages and paths by name, reasons by DegradedReason, RPCs
by the methods that are served. Layers and ranks are labels of their own, never experts, never both
at once, and at most DETAIL_SERIES series have one of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from foremoe.rpc.status import LayerStatus, RuntimeStatus, StepState
from foremoe.runtime.totals import StageTotals
from foremoe.vocabulary import Stage

DETAIL_SERIES = 10_000

AllTotals = Mapping[tuple[str, Stage], StageTotals]
Rows = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is shown, taken at one moment by the thread that owns it.

    calls: RPCs that have ended, by service, method and status code. leader_connected: whether a
    follower's leader is there; None for a daemon that plans.
    """

    status: RuntimeStatus
    totals: AllTotals
    calls: Mapping[tuple[str, str, str], int]
    running_calls: int
    draining: bool
    leader_connected: bool | None = None


class RuntimeCollector(Collector):
    """One snapshot as metrics."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from _daemon(self._snapshot)
        yield from _groups(self._snapshot.status)
        yield from _stages(self._snapshot.totals)
        detailed, left_out = _affordable(self._snapshot.totals)
        yield from _layers(detailed)
        yield from _ranks(detailed)
        yield GaugeMetricFamily(
            "foremoe_series_left_out",
            f"Series by layer or rank above the limit of {DETAIL_SERIES}.",
            left_out,
        )


def _daemon(snapshot: Snapshot) -> Iterator[Metric]:
    status = snapshot.status
    yield _gauge("foremoe_build_info", "Always 1.", ["version"], [((status.version,), 1)])
    for name, text, value in (
        ("foremoe_draining", "1 while the daemon lets calls end and takes no new ones.",
         snapshot.draining),
        ("foremoe_stored_bytes", "Bytes of foresight, schedules and plans held.",
         status.stored_bytes),
        ("foremoe_stored_bytes_limit", "Most bytes that may be held.", status.stored_bytes_limit),
        ("foremoe_rpcs_running", "Calls to ForeMoE's services under way, streams among them.",
         snapshot.running_calls),
    ):  # fmt: skip
        yield _gauge(name, text, [], [((), value)])
    if snapshot.leader_connected is not None:
        yield _gauge(
            "foremoe_leader_connected",
            "1 while this follower's leader answers.",
            [],
            [((), snapshot.leader_connected)],
        )
    states = [step.state for step in status.steps]
    held = [((state.value,), states.count(state)) for state in StepState if state != "released"]
    yield _gauge("foremoe_steps", "Unreleased steps by state.", ["state"], held)
    yield _counter(
        "foremoe_rpcs",
        "Calls that have ended.",
        ["service", "method", "code"],
        snapshot.calls.items(),
    )


def _groups(status: RuntimeStatus) -> Iterator[Metric]:
    for name, text, field in (
        ("foremoe_ranks", "Ranks of the EP group.", "ranks"),
        ("foremoe_registered_ranks", "Ranks that have registered.", "registered"),
        ("foremoe_plan_streams", "Open plan streams.", "streaming"),
    ):
        rows = [((group.ep_group,), getattr(group, field)) for group in status.ep_groups]
        yield _gauge(name, text, ["ep_group"], rows)


def _stages(totals: AllTotals) -> Iterator[Metric]:
    labels = ["ep_group", "stage"]
    for name, text, field in (
        ("foremoe_stages", "Stages that ranks have reported.", "stages"),
        ("foremoe_micro_steps", "Micro-steps that all ranks have reported.", "micro_steps"),
        ("foremoe_stage_seconds", "Wall time of micro-steps, on the slowest rank.", "seconds"),
        ("foremoe_planning_failures", "Stages whose planning broke off.", "planning_failures"),
        ("foremoe_agreement_misses", "Micro-steps whose plan only some ranks held.",
         "agreement_misses"),
    ):  # fmt: skip
        value = attrgetter(field)
        rows = [((group, stage.value), value(one)) for (group, stage), one in totals.items()]
        yield _counter(name, text, labels, rows)
    planning = HistogramMetricFamily(
        "foremoe_planning_seconds", "Time to plan a stage.", labels=labels
    )
    for (group, stage), one in totals.items():
        planning.add_metric([group, stage.value], one.planning.cumulative(), one.planning.seconds)
    yield planning
    yield _counter(
        "foremoe_degraded_micro_steps",
        "Micro-steps that some rank ran without the plan, each under one reason.",
        [*labels, "reason"],
        (
            ((group, stage.value, reason), count)
            for (group, stage), one in totals.items()
            for reason, count in one.degraded.items()
        ),
    )
    for name, text, field in (
        ("foremoe_copies", "Experts received by ranks; not counted for gradients.", "copies"),
        ("foremoe_copied_bytes", "Bytes received by ranks, without padding.", "copied_bytes"),
    ):
        yield _counter(
            name,
            text,
            [*labels, "path"],
            (
                ((group, stage.value, path.path), getattr(path, field))
                for (group, stage), one in totals.items()
                for path in one.paths
            ),
        )


def _affordable(totals: AllTotals) -> tuple[AllTotals, int]:
    """The groups and stages whose layers and ranks are shown, and the series that are not."""
    shown: dict[tuple[str, Stage], StageTotals] = {}
    series = left_out = 0
    for key, one in totals.items():
        size = 4 * len(one.layers) + 2 * len(one.computed_tokens)
        if series + size <= DETAIL_SERIES:
            shown[key] = one
            series += size
        else:
            left_out += size
    return shown, left_out


def _layers(totals: AllTotals) -> Iterator[Metric]:
    for name, text, field in (
        ("foremoe_imbalance_before", "Imbalance with experts at home", "imbalance_before"),
        ("foremoe_imbalance_after", "Imbalance under the plans", "imbalance_after"),
        ("foremoe_imbalance_measured", "Imbalance of what ranks computed", "imbalance_measured"),
    ):
        yield _gauge(
            name,
            f"{text}, mean over the micro-steps of the last stage.",
            ["ep_group", "stage", "layer"],
            (
                ((group, stage.value, str(layer.layer)), getattr(layer, field))
                for (group, stage), one in totals.items()
                for layer in _last_layers(one, measured=field == "imbalance_measured")
            ),
        )
    yield _counter(
        "foremoe_layer_exposed_seconds",
        "Time compute waited for a layer's copies, summed over ranks.",
        ["ep_group", "stage", "layer"],
        (
            ((group, stage.value, str(layer)), float(seconds))
            for (group, stage), one in totals.items()
            for layer, seconds in zip(one.layers, one.layer_exposed_seconds, strict=True)
        ),
    )


def _last_layers(totals: StageTotals, measured: bool) -> tuple[LayerStatus, ...]:
    detail = totals.reported if measured else totals.planned
    return () if detail is None else detail.layers


def _ranks(totals: AllTotals) -> Iterator[Metric]:
    for name, text, field in (
        ("foremoe_computed_tokens", "(token, expert) pairs computed.", "computed_tokens"),
        ("foremoe_exposed_seconds", "Time compute waited for copies and gradients.",
         "rank_exposed_seconds"),
    ):  # fmt: skip
        yield _counter(
            name,
            text,
            ["ep_group", "stage", "rank"],
            (
                ((group, stage.value, str(rank)), float(value))
                for (group, stage), one in totals.items()
                for rank, value in enumerate(getattr(one, field))
            ),
        )


def _gauge(name: str, text: str, labels: list[str], rows: Rows) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), rows)


def _counter(name: str, text: str, labels: list[str], rows: Rows) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), rows)


def _filled(family: Any, rows: Rows) -> Metric:
    for values, value in rows:
        family.add_metric(values, value)
    metric: Metric = family
    return metric
