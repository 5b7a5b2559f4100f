"""The daemon's log: one line per RL step and EP group, and what went wrong.

Each line carries its step, EP group, stage and micro-step as ``fields``, for logs kept as JSON.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.status import StageStatus
from foremoe.runtime.stage import PlanningSummary, StageRecord

log = logging.getLogger(__name__)


def log_planned(record: StageRecord, summary: PlanningSummary) -> None:
    log.debug(
        "step %d %s of %s: %d micro-steps planned in %.3f s, imbalance %.3f -> %.3f, "
        "%.2f replicas per layer",
        record.step,
        record.stage,
        record.ep_group,
        len(record.plans),
        summary.seconds,
        summary.imbalance_before.mean(),
        summary.imbalance_after.mean(),
        summary.replicas,
        extra={"fields": _where(record)},
    )


def log_failed(record: StageRecord, error: BaseException) -> None:
    log.error(
        "step %d %s of %s: planning failed after %d of %d micro-steps; the rest runs without "
        "replicas",
        record.step,
        record.stage,
        record.ep_group,
        len(record.plans),
        len(record.schedule),
        exc_info=error,
        extra={"fields": _where(record) | {"micro_step": len(record.plans)}},
    )


def log_degraded(record: StageRecord, rank: int, report: MicroStepReport) -> None:
    log.warning(
        "step %d %s of %s: micro-step %d ran without its plan on rank %d: %s; more of this stage "
        "are only counted",
        record.step,
        record.stage,
        record.ep_group,
        report.micro_step,
        rank,
        report.degraded_reason,
        extra={"fields": _where(record) | {"micro_step": report.micro_step, "rank": rank}},
    )


def log_step(step: int, ep_group: str, stages: Iterable[StageStatus]) -> None:
    """What became of a step, when its ranks have reported all of it or when it is released."""
    known = list(stages)
    reasons: Counter[str] = Counter()
    for stage in known:
        reasons.update(stage.degraded_reasons)
    degraded = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    log.info(
        "step %d of %s: %s; %d of %d micro-steps degraded%s",
        step,
        ep_group,
        "; ".join(_summary(stage) for stage in known),
        sum(stage.degraded for stage in known),
        sum(stage.micro_steps for stage in known),
        f" ({degraded})" if degraded else "",
        extra={
            "fields": {
                "step": step,
                "ep_group": ep_group,
                "stages": [asdict(stage) for stage in known],
            }
        },
    )


def _summary(stage: StageStatus) -> str:
    planned = (
        f"{stage.stage} {stage.reported}/{stage.micro_steps} micro-steps in {stage.seconds:.3f} s, "
        f"imbalance {stage.imbalance_before:.3f} -> {stage.imbalance_after:.3f}, "
    )
    if not stage.reported:
        return f"{planned}not measured"
    received = ", ".join(f"{path.path} {path.copied_bytes / 2**20:.1f} MiB" for path in stage.paths)
    return (
        f"{planned}"
        f"measured {stage.imbalance_measured:.3f}, exposed {stage.exposed_seconds * 1e3:.1f} ms, "
        f"{received}"
    )


def _where(record: StageRecord) -> dict[str, object]:
    return {"step": record.step, "ep_group": record.ep_group, "stage": record.stage}
