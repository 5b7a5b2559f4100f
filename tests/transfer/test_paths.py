"""Paths as the engine asks for them; what the scheduler makes of it is tested in schedule/."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy, Fill, Path
from foremoe.transfer.paths import MicroStepPaths, PathSpeed
from foremoe.transfer.schedule.timetable import LayerCopies

HOME = np.arange(16, dtype=np.int32) // 4  # 4 ranks with 4 experts each
ONE_NODE, TWO_NODES = Topology(4, 4), Topology(4, 2)


def _choose(fills: list[Fill], speed: PathSpeed, topology: Topology = ONE_NODE) -> list[Copy]:
    return MicroStepPaths(topology, speed).choose([LayerCopies(3, fills, HOME)])


@st.composite
def fill_lists(draw: st.DrawFn) -> list[Fill]:
    chosen = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), max_size=24))
    foreign = [(rank, expert) for rank, expert in chosen if HOME[expert] != rank]
    return [Fill(rank, slot, expert) for slot, (rank, expert) in enumerate(foreign)]


def test_both_paths_share_in_proportion_to_their_speed() -> None:
    fills = [Fill(0, slot, 4 + slot % 12) for slot in range(12)]
    paths = Counter(copy.path for copy in _choose(fills, PathSpeed(host=2e9, peer=1e9)))
    assert paths == {Path.HOST: 8, Path.PEER: 4}


@given(fill_lists(), st.floats(0, 10), st.floats(0.1, 10))
def test_every_fill_becomes_one_copy_on_a_path_that_exists(
    fills: list[Fill], host: float, peer: float
) -> None:
    copies = _choose(fills, PathSpeed(host, peer), TWO_NODES)
    assert sorted((c.destination, c.slot, c.expert) for c in copies) == sorted(
        (f.rank, f.slot, f.expert) for f in fills
    )
    for copy in copies:
        assert copy.layer == 3
        assert copy.source == HOME[copy.expert] != copy.destination
        crosses = copy.source // 2 != copy.destination // 2
        assert copy.path is Path.PEER if crosses or host == 0 else copy.path in Path


def test_a_path_that_does_not_exist_is_never_chosen() -> None:
    fills = [Fill(0, slot, 4 + slot) for slot in range(6)]
    assert {c.path for c in _choose(fills, PathSpeed(host=0, peer=1))} == {Path.PEER}
    assert {c.path for c in _choose(fills, PathSpeed(host=1, peer=0))} == {Path.HOST}
    with pytest.raises(InvalidInputError, match="no path from rank 2 to rank 0"):
        _choose([Fill(0, 0, 8)], PathSpeed(host=1, peer=0), TWO_NODES)


def test_copies_of_earlier_layers_count_until_a_new_micro_step() -> None:
    paths = MicroStepPaths(ONE_NODE, PathSpeed(1, 1))

    def chosen(layer: int) -> Path:
        (copy,) = paths.choose([LayerCopies(layer, [Fill(0, 0, 4)], HOME)])
        return copy.path

    assert [chosen(layer) for layer in (3, 5, 9, 3)] == [Path.HOST, Path.PEER, Path.HOST, Path.HOST]
    assert chosen(5) is Path.PEER
    paths.restart()
    assert chosen(9) is Path.HOST


@pytest.mark.parametrize("host", [1.0, 1e3, 5e10])
@pytest.mark.parametrize("ratio", [1e-6, 0.3, 1e6])
def test_only_the_ratio_of_the_speeds_matters(host: float, ratio: float) -> None:
    fills = [Fill(0, slot, 4 + slot % 12) for slot in range(30)]
    copies = _choose(fills, PathSpeed(host, host * ratio))
    peers = sum(copy.path is Path.PEER for copy in copies)
    assert abs(peers - 30 * ratio / (1 + ratio)) <= 1
