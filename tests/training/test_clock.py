"""The group's time: measured without waits, the least of all ranks, told by hook points."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foremoe.training.clock import MicroStepClock, Point
from foremoe.transfer import ticket
from foremoe.transfer.schedule.links import NEVER
from foremoe.vocabulary import Stage

LAYERS = 2
ORDER = [
    (Point.FORWARD, 0),
    (Point.FORWARD_DONE, 0),
    (Point.FORWARD, 1),
    (Point.FORWARD_DONE, 1),
    (Point.BACKWARD_DONE, 1),
    (Point.BACKWARD_DONE, 0),
]


class Watch:
    """A clock that stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(ticket, "time", SimpleNamespace(monotonic=lambda: self.now))

    def run(self, clock: MicroStepClock, wait: float, slower: float = 1.0) -> None:
        """A micro-step: a second between hook points, and a wait at each FORWARD."""
        clock.begin(Stage.UPDATE)
        for point, position in ORDER:
            self.now += slower
            clock.reach(point, position)
            if point is Point.FORWARD:
                self.now += wait
                clock.resume()
        self.now += 0.5
        clock.end(pairs=13)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def measured(watch: Watch, *waits: float, slower: float = 1.0) -> NDArray[np.float64]:
    clock = MicroStepClock(LAYERS, torch.device("cpu"))
    for wait in waits:
        watch.run(clock, wait, slower)
    return clock.take()


def test_hook_points_tell_the_time_of_the_rank_that_was_not_held_up(watch: Watch) -> None:
    clock = MicroStepClock(LAYERS, torch.device("cpu"))
    clock.begin(Stage.UPDATE)
    assert clock.due_ns(Point.FORWARD, 0, 0) == NEVER, "nothing is known yet"
    one = measured(watch, 0.0, 9.0, 9.0)
    clock.settle([one, measured(watch, 0.0, slower=3.0)])
    clock.begin(Stage.UPDATE)
    seconds = []
    for point, position in ORDER:
        clock.reach(point, position)
        seconds.append(clock.now_ns / 1e9)
        assert clock.due_ns(point, position, 0) == clock.now_ns
    assert seconds == [1, 2, 3, 4, 5, 6]
    assert clock.due_ns(Point.FORWARD, 1, 1) == 9.5e9, "a micro-step takes 6.5 s"
    assert clock.worth_ns(4) == 2e9, "13 pairs in 6.5 s"
    clock.begin(Stage.UPDATE)
    assert clock.now_ns == 6.5e9
    clock.begin(Stage.RECOMPUTE)
    assert clock.due_ns(Point.FORWARD, 0, 0) == NEVER, "another stage has another pace"


def test_later_measurements_move_the_estimate_and_silence_does_not(watch: Watch) -> None:
    clock = MicroStepClock(LAYERS, torch.device("cpu"))
    clock.settle([measured(watch, 0.0)])
    clock.settle([clock.take()])
    clock.settle([measured(watch, 0.0, slower=2.0)])
    clock.begin(Stage.UPDATE)
    assert clock.due_ns(Point.FORWARD_DONE, 0, 0) == 2 * 1.3e9
