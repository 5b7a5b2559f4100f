from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy, Fill, Path
from foremoe.transfer.path_flow import Transfer
from foremoe.transfer.paths import PathLoad, PathSpeed, choose_paths, last_end

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
    assert load.host_in == [8, 0, 0, 0]
    assert load.peer_in == [4, 0, 0, 0]


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
        slabs = [load.host_in, load.peer_in, load.peer_out]
        return max(max(s) / link for s, link in zip(slabs, (host, peer, peer), strict=True))

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


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[list[Fill], PathSpeed, Topology, PathLoad]:
    fills = draw(fill_lists())[:7]
    speed = PathSpeed(
        draw(st.sampled_from([0.0, 1.0, 2.0, 3.0])), draw(st.sampled_from([1.0, 2.0]))
    )
    earlier = st.lists(st.integers(0, 3), min_size=4, max_size=4)
    load = PathLoad(draw(earlier), draw(earlier), draw(earlier))
    return fills, speed, draw(st.sampled_from([ONE_NODE, TWO_NODES])), load


@settings(max_examples=600)
@given(small_problems())
def test_no_choice_of_paths_ends_earlier(
    problem: tuple[list[Fill], PathSpeed, Topology, PathLoad],
) -> None:
    fills, speed, topology, load = problem
    before = load.copy()
    copies = choose_paths(3, fills, HOME, topology, speed, load)
    transfers = [
        Transfer(
            copy.source,
            copy.destination,
            speed.host > 0 and topology.node_of(copy.source) == topology.node_of(copy.destination),
        )
        for copy in copies
    ]
    chosen = {index for index, copy in enumerate(copies) if copy.path is Path.PEER}
    forced = {index for index, transfer in enumerate(transfers) if not transfer.host}
    assert forced <= chosen
    free = sorted(set(range(len(transfers))) - forced)
    earliest = min(
        last_end(transfers, forced | set(extra), speed, before)
        for count in range(len(free) + 1)
        for extra in combinations(free, count)
    )
    assert last_end(transfers, chosen, speed, before) == earliest
    replayed = before.copy()
    for transfer, copy in zip(transfers, copies, strict=True):
        replayed.add(transfer, copy.path)
    assert replayed == load


def test_a_copy_makes_way_for_those_that_need_its_source_more() -> None:
    """By itself the first fill would end sooner by peer, but then the last one ends at 3, not 2."""
    fills = [Fill(1, 0, 0), Fill(2, 0, 1), Fill(3, 0, 2)]
    load = PathLoad([0, 0, 1, 1], [0] * 4, [0] * 4)
    copies = choose_paths(3, fills, HOME, ONE_NODE, PathSpeed(host=0.5, peer=1.0), load)
    assert [copy.path for copy in copies] == [Path.HOST, Path.PEER, Path.PEER]
