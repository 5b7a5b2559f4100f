"""A daemon that is replaced while steps run: none of its plans is lost, the next one's come."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from foremoe.client import ControllerClient, MicroStepSchedule, RankClient
from foremoe.vocabulary import DegradedReason, Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.steps import GROUP, RANKS, TOP_K, Group

LARGE = replace(GROUP, ep_group="large", num_experts=64, layers=tuple(range(32)))
MICRO_STEPS = 150


def upload(controller: ControllerClient, step: int) -> None:
    """Sequences of uneven load, as many as take a daemon a while to plan."""
    chance = np.random.default_rng(0)
    with controller.foresight_stream(step, LARGE.layers, LARGE.num_experts, TOP_K) as stream:
        for index in range(MICRO_STEPS * RANKS):
            weights = chance.dirichlet(np.full(LARGE.num_experts, 0.3), size=len(LARGE.layers))
            histogram = chance.multinomial(64 * TOP_K, weights).astype(np.uint32)
            stream.add(f"{index // RANKS}-{index % RANKS}", histogram=histogram)


def test_a_daemon_told_to_stop_sends_every_plan_of_the_schedules_it_has(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    schedule = [
        MicroStepSchedule(0, [[f"{index}-{rank}"] for rank in range(RANKS)])
        for index in range(MICRO_STEPS)
    ]
    slow = ["--planning-workers", "1", "--drain-seconds", "60", "--log-level", "debug"]
    with ExitStack() as open_now:
        first = open_now.enter_context(DaemonProcess(tmp_path, *slow))
        controller = open_now.enter_context(ControllerClient(first.address))
        large, small = (
            [
                open_now.enter_context(RankClient(first.address, replace(group, rank=rank)))
                for rank in range(RANKS)
            ]
            for group in (LARGE, GROUP)
        )
        upload(controller, 1)
        for stage in Stage:
            controller.submit_schedule("large", 1, stage, schedule)
        assert first.terminate() == 0
        log = first.log.read_text()
        assert log.index("draining") < log.index("micro-steps planned in")
        for rank in large:
            eventually(lambda rank=rank: not rank.connected)  # type: ignore[misc]
            assert rank.missing_reason is DegradedReason.RUNTIME_LOST
            for stage in Stage:
                for index in range(MICRO_STEPS):
                    assert rank.wait(1, stage, index, 0.0) is not None, (stage, index)
        with DaemonProcess(tmp_path):
            eventually(lambda: all(rank.connected for rank in (*large, *small)))
            group = Group(controller, GROUP.ep_group, small)
            group.run(2)
            for stage in Stage:
                status = group.status(2, stage)
                assert (status.degraded, status.reported) == (0, 3)
                assert status.imbalance_after < status.imbalance_before
