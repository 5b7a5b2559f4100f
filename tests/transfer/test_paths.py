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
from foremoe.transfer.schedule.links import NEVER
from foremoe.transfer.schedule.timetable import LayerCopies

HOME = np.arange(16, dtype=np.int32) // 4  # 4 ranks with 4 experts each
ONE_NODE, TWO_NODES = Topology(4, 4), Topology(4, 2)


SLAB_BYTES = 2**24


def _choose(fills: list[Fill], speed: PathSpeed, topology: Topology = ONE_NODE) -> tuple[Copy, ...]:
    return MicroStepPaths(topology, speed, SLAB_BYTES).choose([LayerCopies(3, fills, HOME)]).copies


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
        _choose([Fill(0, 0, 8)], PathSpeed(host=1, peer=0, network=0), TWO_NODES)


def test_copies_of_earlier_layers_count_until_a_new_micro_step() -> None:
    paths = MicroStepPaths(ONE_NODE, PathSpeed(1, 1), SLAB_BYTES)

    def chosen(layer: int) -> Path:
        (copy,) = paths.choose([LayerCopies(layer, [Fill(0, 0, 4)], HOME)]).copies
        return copy.path

    assert [chosen(layer) for layer in (3, 5, 9, 3)] == [Path.HOST, Path.PEER, Path.HOST, Path.HOST]
    assert chosen(5) is Path.PEER
    paths.restart()
    assert chosen(9) is Path.HOST


@pytest.mark.parametrize("host", [1e3, 1e6, 5e10])
@pytest.mark.parametrize("ratio", [1e-3, 0.3, 1e3])
def test_only_the_ratio_of_the_speeds_matters(host: float, ratio: float) -> None:
    fills = [Fill(0, slot, 4 + slot % 12) for slot in range(30)]
    copies = _choose(fills, PathSpeed(host, host * ratio))
    peers = sum(copy.path is Path.PEER for copy in copies)
    assert abs(peers - 30 * ratio / (1 + ratio)) <= 1


SLAB_NS = 2**20
SPEED = PathSpeed(host=SLAB_BYTES * 1e9 / SLAB_NS, peer=0.0)


def test_what_cannot_come_in_time_is_dropped_unless_it_is_worth_the_wait() -> None:
    fills = [Fill(0, slot, 4 + slot) for slot in range(6)]
    value = [1, 9, 1, 9, 1, 1]
    paths = MicroStepPaths(ONE_NODE, SPEED, SLAB_BYTES)
    window = {"ready_ns": 0, "deadline_ns": 3 * SLAB_NS}
    chosen = paths.choose([LayerCopies(3, fills, HOME, **window, value=value)])
    assert len(chosen.copies) == 3
    assert {fill.slot for _, fill in chosen.dropped} <= {0, 2, 4, 5}
    paths.restart()
    patient = LayerCopies(3, fills, HOME, **window, value=value, latest_ns=5 * SLAB_NS)
    chosen = paths.choose([patient])
    assert len(chosen.copies) == 5
    assert (chosen.end_ns <= 5 * SLAB_NS).all()


def test_time_that_has_passed_frees_the_links() -> None:
    paths = MicroStepPaths(ONE_NODE, SPEED, SLAB_BYTES)
    fills = [Fill(0, slot, 4 + slot) for slot in range(4)]
    dropped = []
    for ready in (0, 0, 2, 4):
        layer = LayerCopies(3, fills, HOME, ready * SLAB_NS, (ready + 4) * SLAB_NS)
        dropped.append(len(paths.choose([layer]).dropped))
    assert dropped == [0, 4, 2, 2]


def test_a_late_layer_takes_only_what_punctual_ones_leave() -> None:
    """The second layer keeps its deadline although the first one waits for the same link."""
    first = LayerCopies(3, [Fill(0, s, 4 + s) for s in range(3)], HOME, 0, SLAB_NS, latest_ns=NEVER)
    second = LayerCopies(5, [Fill(0, 3, 9)], HOME, 0, 2 * SLAB_NS)
    chosen = MicroStepPaths(ONE_NODE, SPEED, SLAB_BYTES).choose([first, second])
    assert not chosen.dropped
    ends = {c.slot: end // SLAB_NS for c, end in zip(chosen.copies, chosen.end_ns, strict=True)}
    assert ends == {0: 1, 3: 2, 1: 3, 2: 4}


def test_copies_between_nodes_take_the_network() -> None:
    speed = PathSpeed(SPEED.host, SPEED.host, network=SPEED.host / 4)
    paths = MicroStepPaths(TWO_NODES, speed, SLAB_BYTES)
    near, far = Fill(0, 0, 4), Fill(0, 1, 8)
    chosen = paths.choose([LayerCopies(3, [near, far], HOME, 0, 3 * SLAB_NS)])
    assert [copy.slot for copy in chosen.copies] == [0]
    assert chosen.dropped == ((3, far),)
