"""Strategies for small scheduling problems, and what every timetable must satisfy."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Fill, Path, Relay
from foremoe.transfer.schedule.links import NEVER, Link, Links
from foremoe.transfer.schedule.timetable import LayerCopies, Timetable

RANKS, EXPERTS = 4, 8
HOME = np.arange(EXPERTS, dtype=np.int32) // 2
TOPOLOGIES = (Topology(4, 4), Topology(4, 2))


@st.composite
def fill_lists(draw: st.DrawFn, most: int) -> list[Fill]:
    pairs = st.tuples(st.integers(0, RANKS - 1), st.integers(0, EXPERTS - 1))
    chosen = draw(st.lists(pairs, max_size=most, unique=True))
    foreign = [(rank, expert) for rank, expert in chosen if HOME[expert] != rank]
    return [Fill(rank, slot, expert) for slot, (rank, expert) in enumerate(foreign)]


@st.composite
def links(draw: st.DrawFn, relay: bool | None = None) -> Links:
    """Every copy has a path: the network carries those between nodes, host or peer the others."""
    slab = st.integers(1, 40)
    host, peer = draw(slab | st.just(0)), draw(slab)
    if host and draw(st.booleans()):
        peer = 0
    return Links(
        draw(st.sampled_from(TOPOLOGIES)),
        host,
        peer,
        draw(slab),
        draw(st.integers(1, 3)),
        draw(st.booleans()) if relay is None else relay,
    )


@st.composite
def layer_lists(draw: st.DrawFn, most: int, layers: int) -> list[LayerCopies]:
    found = []
    for layer in range(draw(st.integers(1, layers))):
        fills = draw(fill_lists(most))
        ready = draw(st.integers(0, 60))
        deadline = draw(st.integers(ready, ready + 150) | st.just(NEVER))
        value = draw(st.none() | st.just([draw(st.integers(0, 5)) for _ in fills]))
        found.append(LayerCopies(layer, fills, HOME, ready, deadline, value))
    return found


def check_timetable(timetable: Timetable, layers: Sequence[LayerCopies], links: Links) -> None:
    """No port twice at a time, windows kept, sources that hold the expert, nothing forgotten."""
    asked = {
        (layer.layer, fill.rank, fill.slot, fill.expert) for layer in layers for fill in layer.fills
    }
    kept = [(c.layer, c.destination, c.slot, c.expert) for c in timetable.copies]
    lost = [(layer, fill.rank, fill.slot, fill.expert) for layer, fill in timetable.dropped]
    assert sorted(kept + lost) == sorted(asked)
    assert list(timetable.start_ns) == sorted(timetable.start_ns)
    by_layer = {layer.layer: layer for layer in layers}
    arrived: dict[tuple[int, int, int], tuple[int, int]] = {}  # when and in which slot
    ports: dict[tuple[str, Link, int], list[tuple[int, int]]] = {}
    for index, copy in enumerate(timetable.copies):
        link = Link(timetable.link[index])
        layer = by_layer[copy.layer]
        assert layer.ready_ns <= timetable.start_ns[index]
        assert timetable.end_ns[index] <= layer.deadline_ns
        assert (copy.path is Path.HOST) == (link is Link.HOST)
        if link is Link.HOST:
            assert links.between(copy.source, copy.destination) is Link.PEER
        else:
            assert links.between(copy.source, copy.destination) is link
        if copy.source != HOME[copy.expert]:
            assert links.relay
            assert link is not Link.HOST
            arrival, slot = arrived[copy.layer, copy.expert, copy.source]
            assert arrival <= timetable.start_ns[index], "sent on before it arrived"
            assert copy.relay == Relay(slot, HOME[copy.expert])
        assert copy.home == HOME[copy.expert]
        if link is not Link.HOST:
            arrival = int(timetable.end_ns[index])
            arrived[copy.layer, copy.expert, copy.destination] = arrival, copy.slot
    for piece in timetable.pieces():
        copy, link = timetable.copies[piece.index], Link(timetable.link[piece.index])
        assert piece.end_ns - piece.start_ns == piece.chunks * links.tick_ns[link]
        times = (piece.start_ns, piece.end_ns)
        ports.setdefault(("in", link, copy.destination), []).append(times)
        if link is not Link.HOST:
            ports.setdefault(("out", link, copy.source), []).append(times)
    for times_of_port in ports.values():
        for (_, end), (start, _) in pairwise(sorted(times_of_port)):
            assert end <= start, "a port carries two copies at once"
    assert sum(piece.chunks for piece in timetable.pieces()) == links.chunks * len(kept)
