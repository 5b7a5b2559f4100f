from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from foremoe.transfer.copies import Copy, Path, Relay
from foremoe.transfer.schedule.rounds import rounds, rounds_in_order

ranks = st.integers(0, 5)
pairs = st.lists(st.tuples(ranks, ranks).filter(lambda pair: pair[0] != pair[1]), max_size=40)


@given(pairs)
def test_every_pair_runs_once_and_no_port_is_used_twice_in_a_round(
    drawn: list[tuple[int, int]],
) -> None:
    dealt = rounds(drawn)
    assert sorted(index for round_ in dealt for index in round_) == list(range(len(drawn)))
    for round_ in dealt:
        assert round_ == sorted(round_)
        assert len({drawn[i][0] for i in round_}) == len(round_)
        assert len({drawn[i][1] for i in round_}) == len(round_)


@given(pairs)
def test_there_are_as_many_rounds_as_the_busiest_port_has_pairs(
    drawn: list[tuple[int, int]],
) -> None:
    ports = Counter(("out", s) for s, _ in drawn) + Counter(("in", d) for _, d in drawn)
    assert len(rounds(drawn)) == max(ports.values(), default=0)


def test_rounds_do_not_depend_on_hashing_or_repetition() -> None:
    drawn = [(0, 1), (0, 2), (1, 2), (2, 0), (1, 0), (0, 1)]
    assert rounds(drawn) == [[0, 2, 3], [1, 4], [5]]


@st.composite
def copies(draw: st.DrawFn) -> list[Copy]:
    return [
        Copy(0, 0, source, destination, 0, Path.PEER, relay=draw(st.none() | st.just(Relay(0, 0))))
        for source, destination in draw(pairs)
    ]


@given(copies())
def test_rounds_in_order_keep_the_order_and_wait_for_nothing_needlessly(drawn: list[Copy]) -> None:
    dealt = [[drawn[index] for index in round_] for round_ in rounds_in_order(drawn)]
    assert [copy for round_ in dealt for copy in round_] == drawn
    for round_ in dealt:
        assert len({copy.source for copy in round_}) == len(round_)
        assert len({copy.destination for copy in round_}) == len(round_)
        for index, copy in enumerate(round_):
            before = {other.destination for other in round_[:index]}
            assert copy.relay is None or copy.source not in before, "sent on before it has come"
    for round_, (copy, *_) in pairwise(dealt):
        relayed = copy.relay is not None and any(o.destination == copy.source for o in round_)
        taken = any(o.source == copy.source or o.destination == copy.destination for o in round_)
        assert relayed or taken
