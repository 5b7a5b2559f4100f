import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy, Fill, Path
from foremoe.transfer.paths import PathLoad, PathSpeed, choose_paths

HOME = np.arange(16, dtype=np.int32) // 4  # 4 ranks with 4 experts each
ONE_NODE, TWO_NODES = Topology(4, 4), Topology(4, 2)


def _choose(
    fills: list[Fill], speed: PathSpeed, topology: Topology = ONE_NODE
) -> tuple[list[Copy], PathLoad]:
    load = PathLoad.empty(4)
    return choose_paths(3, fills, HOME, topology, speed, load), load


@st.composite
def fill_lists(draw: st.DrawFn) -> list[Fill]:
    chosen = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), max_size=24))
    foreign = [(rank, expert) for rank, expert in chosen if HOME[expert] != rank]
    return [Fill(rank, slot, expert) for slot, (rank, expert) in enumerate(foreign)]


def test_both_paths_share_in_proportion_to_their_speed() -> None:
    fills = [Fill(0, slot, 4 + slot % 12) for slot in range(12)]
    copies, load = _choose(fills, PathSpeed(host=2e9, peer=1e9))
    assert [copy.path for copy in copies].count(Path.HOST) == 8
    assert load.host_in.tolist() == [8, 0, 0, 0]
    assert load.peer_in.tolist() == [4, 0, 0, 0]


def test_a_hot_source_is_relieved_by_the_host_path() -> None:
    fills = [Fill(rank, slot, slot) for rank in (1, 2, 3) for slot in range(4)]
    copies, load = _choose(fills, PathSpeed(host=1e9, peer=1e9))
    assert all(copy.source == 0 for copy in copies)
    assert load.peer_out[0] == 3, "one send for every three copies by the readers"


@given(fill_lists(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_sharing_never_ends_later_than_either_path_alone(
    fills: list[Fill], host: float, peer: float
) -> None:
    def end(speed: PathSpeed) -> float:
        _, load = _choose(fills, speed)
        ends = [load.host_in / host, load.peer_in / peer, load.peer_out / peer]
        return float(np.max(ends))

    both = end(PathSpeed(host, peer))
    assert both <= end(PathSpeed(host, 0)) + 1e-9
    assert both <= end(PathSpeed(0, peer)) + 1e-9


@given(fill_lists(), st.floats(0, 10), st.floats(0.1, 10))
def test_every_fill_becomes_one_copy_on_a_path_that_exists(
    fills: list[Fill], host: float, peer: float
) -> None:
    copies, _ = _choose(fills, PathSpeed(host, peer), TWO_NODES)
    assert [(c.destination, c.slot, c.expert) for c in copies] == [
        (f.rank, f.slot, f.expert) for f in fills
    ]
    for copy in copies:
        assert copy.layer == 3
        assert copy.source == HOME[copy.expert] != copy.destination
        crosses = copy.source // 2 != copy.destination // 2
        assert copy.path is Path.PEER if crosses or host == 0 else copy.path in Path


def test_a_path_that_does_not_exist_is_never_chosen() -> None:
    fills = [Fill(0, slot, 4 + slot) for slot in range(6)]
    assert {c.path for c in _choose(fills, PathSpeed(host=0, peer=1))[0]} == {Path.PEER}
    assert {c.path for c in _choose(fills, PathSpeed(host=1, peer=0))[0]} == {Path.HOST}
    with pytest.raises(InvalidInputError, match="no path from rank 2 to rank 0"):
        _choose([Fill(0, 0, 8)], PathSpeed(host=1, peer=0), TWO_NODES)


def test_load_of_earlier_layers_counts() -> None:
    load = PathLoad.empty(4)
    load.host_in[0] = 5
    copies = choose_paths(3, [Fill(0, 0, 4)], HOME, ONE_NODE, PathSpeed(1, 1), load)
    assert copies[0].path is Path.PEER
