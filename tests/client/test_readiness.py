"""When a stage counts as planned, and how waiting and asking again end."""

import time
from dataclasses import replace

import pytest

from foremoe.client.readiness import Readiness
from foremoe.client.retry import Attempts
from foremoe.errors import NotReadyError, UnknownError
from foremoe.rpc.status import RuntimeStatus, StageStatus, StepState, StepStatus
from foremoe.vocabulary import Stage


def snapshot(planned: int, *, failed: bool = False, micro_steps: int = 8) -> RuntimeStatus:
    figures = StageStatus("ep0", Stage.UPDATE, micro_steps, planned, 1.5, 1.0, 1.0, 0, 0.1)
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


def test_planning_anew_does_not_take_progress_back() -> None:
    """The daemon was restarted, and the stage scheduled again, shorter."""
    told: list[tuple[int, int]] = []
    readiness = Readiness("ep0", 3, Stage.UPDATE, 1, lambda *counts: told.append(counts))
    assert not readiness.take(snapshot(4))
    assert not readiness.take(snapshot(2, micro_steps=4))
    assert readiness.take(snapshot(4, micro_steps=4))
    assert told == [(4, 8)]


def test_delays_double_up_to_a_second_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert Attempts(10, 0).delay() is None
    attempts, delays = Attempts(10, 4), list[float]()
    while (delay := attempts.delay()) is not None:
        delays.append(delay)
        now += delay + 1e-6
    assert delays == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.45], rel=1e-3)


def test_only_attempts_in_vain_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon lost for 1 s after an hour's upload, and once more after another hour."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    attempts = Attempts(10, 1.5)
    for progress in (100, 200):
        now += 3600
        assert attempts.delay(progress) == 0.05
        now += 0.5
        assert attempts.delay(3) == 0.1
    now += 0.4
    assert attempts.delay(200) == pytest.approx(0.1)
    now += 0.2
    assert attempts.delay(3) is None


def test_attempts_end_with_the_callers_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    attempts = Attempts(10, 60, 4)
    assert attempts.timeout_seconds() == 4
    now = 3.98
    assert attempts.timeout_seconds() == 1
    assert attempts.delay() == pytest.approx(0.02)
    now = 4.0
    assert attempts.delay() is None
