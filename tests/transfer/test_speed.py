"""Measured speeds: smoothed, and the same choice of paths on all ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Path as CopyPath
from foremoe.transfer.paths import UNMEASURED, PathSpeed, feed_back
from foremoe.transfer.schedule.links import Link
from foremoe.transfer.statistics import StatisticsRecorder
from tests.processes import run_ranks
from tests.transfer.faults import slow_reads
from tests.transfer.toy_group import LAYERS, ToyRank

WANTED = np.array([[4, 5], [0, 1]], np.int32)


def test_the_first_measure_replaces_a_guess_and_later_ones_move_it() -> None:
    measured = [PathSpeed(3e9, 0.0, 1e9), PathSpeed(4e9, 0.0, 0.0)]
    first = feed_back(PathSpeed(8e9, 4e9, 4e9), measured, first=True)
    assert first == PathSpeed(3e9, 4e9, 1e9), "the slowest rank counts"
    later = feed_back(first, [PathSpeed(4e9, 2e9, 2e9)], first=False)
    assert later == PathSpeed(3.3e9, 3.4e9, 1.3e9)


def test_small_changes_and_silence_change_nothing() -> None:
    speed = PathSpeed(8e9, 4e9)
    assert feed_back(speed, [PathSpeed(8.7e9, 3.7e9)], first=False) == speed
    assert feed_back(speed, [UNMEASURED] * 3, first=True) == speed
    absent = PathSpeed(8e9, 0.0)
    assert feed_back(absent, [PathSpeed(0.0, 5e9)], first=True) == absent


def test_a_link_whose_copies_were_all_dropped_is_tried_again_by_and_by() -> None:
    speed = PathSpeed(1e3, 4e9)
    for _ in range(12):
        speed = feed_back(speed, [PathSpeed(0.0, 4e9, 0.0)], first=False, dropped=True)
    assert speed.host > 1e5
    assert speed.peer == 4e9


def test_copies_that_waited_for_a_late_rank_do_not_count() -> None:
    statistics = StatisticsRecorder(1)
    assert statistics.take_speed(Link.PEER) == 0.0
    for seconds in (1.0, 1.0, 9.0, 1.0, 30.0):
        statistics.add_speed(CopyPath.PEER, 100, seconds)
    statistics.add_speed(CopyPath.PEER, 100, 2.0, far=True)
    assert statistics.take_speed(Link.PEER) == 100.0
    assert statistics.take_speed(Link.PEER) == 0.0
    assert statistics.take_speed(Link.NETWORK) == 50.0


def _turn_to_the_faster_path(rank: int, directory: Path) -> tuple[list[int], list[float]]:
    toy = ToyRank(rank, 2, directory, speed=PathSpeed(host=1.0, peer=1.0))
    assert toy.cache is not None
    slow_reads(toy.cache, 0.05)
    by_host, speeds = [], []
    for _ in range(3):
        toy.step_optimizer()
        for layer in LAYERS:
            toy.promise(layer, WANTED)
        for layer in LAYERS:
            toy.acquire_checked(layer, WANTED, with_gradients=False)
            toy.engine.release(layer)
        by_host.append(toy.engine.statistics().copies[CopyPath.HOST])
        mine = toy.engine.measured_speed()
        gathered: list[PathSpeed] = [mine] * 2
        dist.all_gather_object(gathered, mine)
        toy.engine.apply_speed(gathered)
        speeds.append(toy.engine._paths.speed.host)
    toy.close()
    return by_host, speeds


def test_copies_leave_a_link_that_was_measured_slow(tmp_path: Path) -> None:
    one, other = run_ranks(_turn_to_the_faster_path, 2, tmp_path)
    for by_host, _ in (one, other):
        assert by_host[0] == len(LAYERS), "half of them while both are taken for equal"
        assert by_host[-1] < by_host[0]
    assert one[1] == other[1], "all ranks choose by the same figures"
    assert one[1][0] == pytest.approx(110 / 0.05, rel=0.6)


def _measure_both(rank: int) -> list[PathSpeed]:
    """First two nodes of one rank each, then one node of two."""
    measured = []
    for ranks_per_node in (1, 2):
        toy = ToyRank(rank, 2, None, topology=Topology(2, ranks_per_node))
        toy.step_optimizer()
        toy.promise(3, WANTED)
        toy.acquire_checked(3, WANTED)
        toy.return_gradients(3)
        toy.collect_gradients()
        measured.append(toy.engine.measured_speed())
        toy.close()
    return measured


def test_copies_from_another_node_measure_the_network() -> None:
    for apart, together in run_ranks(_measure_both, 2):
        assert apart.network > 0 == apart.peer
        assert together.peer > 0 == together.network
