"""When a stage counts as planned, and how waiting and asking again end."""

import time
from dataclasses import replace

import pytest

from foremoe.client.readiness import Readiness
from foremoe.client.retry import retry_delays
from foremoe.errors import NotReadyError, UnknownError
from foremoe.rpc.status import RuntimeStatus, StageStatus, StepState, StepStatus
from foremoe.vocabulary import Stage


def snapshot(planned: int, stage: Stage = Stage.UPDATE, failed: bool = False) -> RuntimeStatus:
    figures = StageStatus("ep0", stage, 8, planned, 1.5, 1.0, 1.0, 0, 0.1)
    stages = (replace(figures, planning_failed=failed),)
    steps = (StepStatus(3, StepState.SCHEDULED, 16, stages),)
    return RuntimeStatus("0", "id", 1, 1.0, 0, 1, (), steps)


def test_progress_is_told_when_there_is_some() -> None:
    told: list[tuple[int, int]] = []
    readiness = Readiness("ep0", 3, Stage.UPDATE, 1, lambda *counts: told.append(counts))
    assert [readiness.take(snapshot(planned)) for planned in (0, 0, 5, 5, 8)] == [False] * 4 + [
        True
    ]
    assert told == [(0, 8), (5, 8), (8, 8)]


@pytest.mark.parametrize(
    ("ep_group", "step", "stage"),
    [("ep1", 3, Stage.UPDATE), ("ep0", 4, Stage.UPDATE), ("ep0", 3, Stage.RECOMPUTE)],
)
def test_a_stage_without_schedule_is_unknown(ep_group: str, step: int, stage: Stage) -> None:
    with pytest.raises(UnknownError, match=f"stage {stage} of step {step} has no schedule"):
        Readiness(ep_group, step, stage, 1, None).take(snapshot(0))


def test_waiting_ends_when_planning_broke_off() -> None:
    with pytest.raises(NotReadyError, match="broke off after 5 of 8 micro-steps"):
        Readiness("ep0", 3, Stage.UPDATE, 60, None).take(snapshot(5, failed=True))


def test_waiting_ends_with_what_was_planned() -> None:
    readiness = Readiness("ep0", 3, Stage.UPDATE, 0, None)
    readiness.take(snapshot(5))
    with pytest.raises(NotReadyError, match="plans for 5 of 8 micro-steps after 0 s"):
        next(readiness.delays())


def test_delays_double_up_to_a_second_and_end() -> None:
    delays = retry_delays(60)
    assert [next(delays) for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert list(retry_delays(0)) == []
    began = time.monotonic()
    for delay in retry_delays(0.2):
        time.sleep(delay)
    assert 0.2 <= time.monotonic() - began < 5
