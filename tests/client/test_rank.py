"""A rank's client against real daemons that plan, refuse, freeze, die and come back."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.client import (
    ControllerClient,
    MicroStepReport,
    MicroStepSchedule,
    RankClient,
    RankPlan,
    RankRegistration,
)
from foremoe.errors import ConflictError
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.plan import Plan, placement_digest
from foremoe.planner.problem import Topology
from foremoe.planner.validate import validate
from foremoe.rpc.status import StageStatus
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually

LAYERS = (1, 2, 5)
EXPERTS = 8
TOP_K = 2
RANKS = 2
GROUP = RankRegistration("group", 0, RANKS, 2, 2, EXPERTS, LAYERS)
WAIT = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def histograms(sequences: int) -> NDArray[np.uint32]:
    """Skewed tokens per expert, uint32 ``[sequences, layers, experts]``, 64 pairs a layer."""
    chance = np.random.default_rng(0)
    shape = (sequences, len(LAYERS))
    weights = chance.dirichlet(np.full(EXPERTS, 0.3), size=shape)
    return chance.multinomial(64, weights).astype(np.uint32)


def run_stage(address: str, step: int, ep_group: str = "group") -> NDArray[np.int64]:
    """Upload and schedule four micro-steps in two mini-batches; the load int64 [M, L, P, E]."""
    counts = histograms(8)
    with ControllerClient(address) as client:
        with client.foresight_stream(step, LAYERS, EXPERTS, TOP_K) as stream:
            for index, histogram in enumerate(counts):
                stream.add(f"s{index}", histogram=histogram)
        client.submit_schedule(ep_group, step, Stage.UPDATE, schedule(4))
    return counts.reshape(4, RANKS, len(LAYERS), EXPERTS).transpose(0, 2, 1, 3).astype(np.int64)


def schedule(micro_steps: int) -> list[MicroStepSchedule]:
    return [
        MicroStepSchedule(index // 2, [[f"s{2 * index}"], [f"s{2 * index + 1}"]])
        for index in range(micro_steps)
    ]


def in_group(ep_group: str) -> list[RankRegistration]:
    return [replace(GROUP, ep_group=ep_group, rank=rank) for rank in range(RANKS)]


def reports(micro_steps: Sequence[int], reason: str = "") -> list[MicroStepReport]:
    layers = len(LAYERS)
    return [
        MicroStepReport(index, reason, np.full(layers, 64), np.zeros(layers))
        for index in micro_steps
    ]


def stage_status(address: str, step: int) -> StageStatus:
    with ControllerClient(address) as client:
        (held,) = [held for held in client.status().steps if held.step == step]
    return held.stages[0]


def test_every_rank_gets_its_row_of_every_plan(daemon: DaemonProcess) -> None:
    first, second = in_group("rows")
    with RankClient(daemon.address, first) as one, RankClient(daemon.address, second) as two:
        load = run_stage(daemon.address, 1, "rows")
        for index in range(4):
            plans = [client.wait(1, Stage.UPDATE, index, WAIT) for client in (one, two)]
            rows = [plan for plan in plans if plan is not None]
            assert len(rows) == RANKS
            check_plan(rows, load[index], index)


def check_plan(rows: list[RankPlan], load: NDArray[np.int64], index: int) -> None:
    plan = rows[0]
    assert plan.digest == rows[1].digest
    assert (plan.step, plan.stage, plan.micro_step) == (1, Stage.UPDATE, index)
    assert (plan.micro_steps, plan.mini_batch) == (4, index // 2)
    assert tuple(plan.layers) == LAYERS
    assert plan.digest == placement_digest(
        1, Stage.UPDATE, index, plan.layers, plan.home, plan.replica_expert
    )
    assert np.array_equal(plan.home, contiguous_homes(len(LAYERS), EXPERTS, RANKS))
    assert np.any(plan.replica_expert >= 0)
    whole = Plan(
        home=plan.home,
        load=load,
        replica_expert=plan.replica_expert,
        replica_tokens=np.stack([row.replica_tokens for row in rows], axis=1),
        bound=np.zeros(len(LAYERS), np.int64),
    )
    validate(whole, load, Topology(RANKS, GROUP.ranks_per_node), GROUP.spare_slots)


def test_plans_made_before_the_rank_came_are_sent(daemon: DaemonProcess) -> None:
    first, second = in_group("late")
    with RankClient(daemon.address, first):
        run_stage(daemon.address, 2, "late")
        with RankClient(daemon.address, second) as late:
            assert late.wait(2, Stage.UPDATE, 3, WAIT) is not None


def test_wait_ends_at_the_deadline_and_is_paid_once_a_stage(daemon: DaemonProcess) -> None:
    with RankClient(daemon.address, in_group("deadline")[0]) as client:
        begin = time.monotonic()
        assert client.wait(3, Stage.UPDATE, 0, 0.3) is None
        first = time.monotonic() - begin
        assert first >= 0.3
        for index in range(1, 50):
            assert client.wait(3, Stage.UPDATE, index, 0.3) is None
        assert time.monotonic() - begin < 10 * first  # not 50 deadlines
        run_stage(daemon.address, 3, "deadline")
        eventually(lambda: client.wait(3, Stage.UPDATE, 3, 0.0) is not None)


def test_two_waits_of_one_rank_do_not_disturb_each_other(daemon: DaemonProcess) -> None:
    found: dict[int, RankPlan | None] = {}
    with RankClient(daemon.address, in_group("threads")[0]) as client:

        def wait(index: int) -> None:
            found[index] = client.wait(4, Stage.UPDATE, index, WAIT)

        threads = [threading.Thread(target=wait, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        run_stage(daemon.address, 4, "threads")
        for thread in threads:
            thread.join()
    assert [plan.micro_step for _, plan in sorted(found.items()) if plan] == [0, 1, 2, 3]


def test_forgotten_steps_are_gone_and_stay_away(daemon: DaemonProcess) -> None:
    with RankClient(daemon.address, in_group("forget")[0]) as client:
        run_stage(daemon.address, 5, "forget")
        assert client.wait(5, Stage.UPDATE, 3, WAIT) is not None
        client.forget_before(6)
        assert client.wait(5, Stage.UPDATE, 3, 0.0) is None
        run_stage(daemon.address, 6, "forget")
        assert client.wait(6, Stage.UPDATE, 0, WAIT) is not None


def test_rank_of_another_topology_is_refused_at_start(daemon: DaemonProcess) -> None:
    with RankClient(daemon.address, in_group("refused")[0]):
        other = RankClient(daemon.address, replace(in_group("refused")[1], spare_slots=1))
        with pytest.raises(ConflictError, match="spare_slots: EP group 'refused'"):
            other.start()
        assert not other.connected
        assert other.wait(1, Stage.UPDATE, 0, WAIT) is None


def test_reports_reach_the_daemon_before_close_returns(daemon: DaemonProcess) -> None:
    first, second = in_group("reports")
    with RankClient(daemon.address, first) as one, RankClient(daemon.address, second) as two:
        run_stage(daemon.address, 7, "reports")
        one.report(7, Stage.UPDATE, reports([0, 1]))
        one.report(7, Stage.UPDATE, reports([2, 3]))
        two.report(7, Stage.UPDATE, [*reports([0, 1]), *reports([2, 3], "no plan in time")])
    assert stage_status(daemon.address, 7).degraded == 2
    assert (one.dropped_reports, two.dropped_reports) == (0, 0)
    log = daemon.log.read_text()
    assert "micro-step 2 ran without its plan on rank 1: no plan in time" in log
    (line,) = [line for line in log.splitlines() if "step 7 of reports:" in line]
    assert "update 4/4 micro-steps" in line
    assert "measured 1.000" in line
    assert "2 of 4 micro-steps degraded (no plan in time 2)" in line


def test_refused_report_is_dropped_and_counted(daemon: DaemonProcess) -> None:
    with RankClient(daemon.address, in_group("dropped")[0]) as client:
        client.report(999, Stage.UPDATE, reports([0]))
        eventually(lambda: client.dropped_reports == 1)
        assert client.connected


def test_without_a_daemon_nothing_is_raised_and_nothing_waits(nowhere: str) -> None:
    with RankClient(nowhere, GROUP) as client:
        assert not client.connected
        assert client.wait(1, Stage.UPDATE, 0, 3600.0) is None  # the test's limit is shorter
        client.report(1, Stage.UPDATE, reports([0]))
        eventually(lambda: client.dropped_reports == 1)


def test_daemon_that_comes_later_is_found(folder: Path) -> None:
    with RankClient(str(folder / "s"), GROUP) as client:
        assert not client.connected
        with DaemonProcess(folder) as daemon:
            eventually(lambda: client.connected)
            run_stage(daemon.address, 1)
            assert client.wait(1, Stage.UPDATE, 0, WAIT) is not None


@pytest.mark.parametrize("end", [DaemonProcess.kill, DaemonProcess.terminate])
def test_daemon_that_ends_is_missed_and_found_again(folder: Path, end: object) -> None:
    assert callable(end)
    with DaemonProcess(folder) as first, RankClient(first.address, GROUP) as client:
        run_stage(first.address, 1)
        assert client.wait(1, Stage.UPDATE, 3, WAIT) is not None
        waiting = threading.Thread(target=client.wait, args=(2, Stage.UPDATE, 0, 3600.0))
        waiting.start()
        end(first)
        waiting.join()  # a lost daemon ends the wait
        eventually(lambda: not client.connected)
        assert client.wait(1, Stage.UPDATE, 3, 0.0) is not None  # what is here stays
        with DaemonProcess(folder) as second:
            eventually(lambda: client.connected)
            run_stage(second.address, 2)
            assert client.wait(2, Stage.UPDATE, 3, WAIT) is not None


def test_close_is_bounded_when_the_daemon_is_frozen(folder: Path) -> None:
    with DaemonProcess(folder) as daemon:
        client = RankClient(daemon.address, GROUP)
        client.start()
        daemon.process.send_signal(signal.SIGSTOP)
        for _ in range(100):
            client.report(1, Stage.UPDATE, reports([0]))
        begin = time.monotonic()
        client.close(timeout_seconds=0.5)
        assert time.monotonic() - begin < 5.0  # 100 reports would take 200 s
        assert not client.connected


FORKED = """
import os, sys
from foremoe.client import RankClient, RankRegistration
client = RankClient(sys.argv[1], RankRegistration("forked", 0, 1, 1, 0, 4, (0,)))
child = os.fork()
if child == 0:
    with client:
        os._exit(0 if client.connected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_client_made_before_a_fork_starts_after_it(daemon: DaemonProcess) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, daemon.address], timeout=30)
    assert done.returncode == 0
