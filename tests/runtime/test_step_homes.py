"""The daemon chooses homes once a step, for groups that move experts, from where they are."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.client import ControllerClient, MicroStepSchedule, RankClient, RankRegistration
from foremoe.errors import ConflictError, ExhaustedError, InvalidInputError
from foremoe.rpc.registration import decode_registration, encode_registration
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.coordinator import Coordinator
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.uploads import EXPERTS, LAYERS, histogram

CONTIGUOUS = np.array([[0, 0, 1, 1]] * 2, np.int32)
HOT_TOGETHER = histogram(6, 6, 1, 1)  # experts 0 and 1 of the first layer, 2 and 3 of the second
WAIT_SECONDS = 30.0


def group(name: str, **fields: object) -> RankRegistration:
    values = {"spare_slots": 0, "moves_homes": True, **fields}
    return RankRegistration(name, 0, 2, 2, num_experts=EXPERTS, layers=LAYERS, **values)  # type: ignore[arg-type]


def planned_homes(
    daemon: DaemonProcess, registration: RankRegistration, step: int, load: NDArray[np.uint32]
) -> list[NDArray[np.int32]]:
    """Homes in the plans of both stages, whose schedules differ."""
    with (
        ControllerClient(daemon.address) as controller,
        RankClient(daemon.address, registration) as rank,
    ):
        with controller.foresight_stream(step, LAYERS, EXPERTS, 2) as stream:
            stream.add("a", histogram=load)
            stream.add("b", histogram=load[:, ::-1])
        for stage, ids in ((Stage.RECOMPUTE, "a"), (Stage.UPDATE, "b")):
            schedule = [MicroStepSchedule(0, [[ids], []])]
            controller.submit_schedule(registration.ep_group, step, stage, schedule)
        plans = [rank.wait(step, stage, 0, WAIT_SECONDS) for stage in Stage]
    assert all(plan is not None for plan in plans)
    return [plan.home for plan in plans if plan is not None]


def test_homes_level_the_first_stage_and_hold_for_the_whole_step(daemon: DaemonProcess) -> None:
    recompute, update = planned_homes(daemon, group("moving"), 101, HOT_TOGETHER)
    assert np.array_equal(recompute, update)
    for row in range(2):
        tokens = np.bincount(recompute[row], HOT_TOGETHER[row], minlength=2)
        assert tokens.tolist() == [7, 7]
    assert not np.array_equal(recompute, CONTIGUOUS)
    again, _ = planned_homes(daemon, group("moving", home=recompute), 102, HOT_TOGETHER)
    assert np.array_equal(again, recompute)


def test_the_next_step_starts_where_the_last_one_ended(daemon: DaemonProcess) -> None:
    first, _ = planned_homes(daemon, group("going on"), 103, HOT_TOGETHER)
    even = histogram(4, 4, 4, 4)
    second, _ = planned_homes(daemon, group("going on"), 104, even)
    assert np.array_equal(second, first)
    assert not np.array_equal(second, CONTIGUOUS)


def test_a_rank_says_where_experts_are(daemon: DaemonProcess) -> None:
    here = np.array([[1, 0, 1, 0]] * 2, np.int32)
    even = histogram(4, 4, 4, 4)
    for step, home in ((105, here), (106, CONTIGUOUS)):  # a restarted job begins anew
        found, _ = planned_homes(daemon, group("told", home=home), step, even)
        assert np.array_equal(found, home)


def test_groups_that_do_not_move_experts_keep_their_homes(daemon: DaemonProcess) -> None:
    home = np.array([[1, 0, 1, 0]] * 2, np.int32)
    staying = group("staying", moves_homes=False, home=home)
    found, _ = planned_homes(daemon, staying, 107, HOT_TOGETHER)
    assert np.array_equal(found, CONTIGUOUS)


def test_bad_homes_are_refused(daemon: DaemonProcess) -> None:
    message = encode_registration(group("bad", home=CONTIGUOUS))
    message.home.shape[0] = 1
    with pytest.raises(InvalidInputError, match="home: expected shape"):
        decode_registration(message)
    with pytest.raises(InvalidInputError, match="does not give every rank 2 experts"):
        group("bad", home=np.zeros_like(CONTIGUOUS))
    with RankClient(daemon.address, group("mixed")):
        other = replace(group("mixed", moves_homes=False), rank=1)
        with pytest.raises(ConflictError, match="moves_homes"), RankClient(daemon.address, other):
            pass


def test_homes_count_as_memory_and_need_room() -> None:
    config = RuntimeConfig("unused/s", memory_limit_bytes=40)
    coordinator = Coordinator(config, lambda _: None, lambda: None)
    coordinator.register(group("first"))
    coordinator.register(replace(group("first"), rank=1))
    assert coordinator.budget.used == CONTIGUOUS.nbytes == 32
    with pytest.raises(ExhaustedError, match="memory limit"):
        coordinator.register(group("second"))
    assert "second" not in coordinator.groups
    assert coordinator.budget.used == 32
