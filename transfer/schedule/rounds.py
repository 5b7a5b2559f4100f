"""Order of peer copies: rounds in which a rank sends at most once and receives at most once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.kernel import kernel
from foremoe.transfer.copies import Copy

FREE = -1


def rounds(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Deal ``pairs`` (source, destination), all of one size, into as few rounds as possible.

    Returns the indices of ``pairs`` round by round, ascending in each. A rank is the source of at
    most one pair and the destination of at most one pair in a round. There are exactly as many
    rounds as the busiest port has pairs, which no order can beat (Kőnig 1916: the edges of a
    bipartite multigraph take as many colours as its largest degree). Deterministic.
    """
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    colour = colours(ends[:, 0].copy(), ends[:, 1].copy())
    dealt: list[list[int]] = [[] for _ in range(int(colour.max(initial=FREE)) + 1)]
    for index, round_ in enumerate(colour.tolist()):
        dealt[round_].append(index)
    return dealt


def rounds_in_order(copies: Sequence[Copy]) -> list[list[int]]:
    """Deal ``copies`` into rounds as ``rounds`` does, but in the order given, as a timetable is.

    A round ends where a rank would send or receive a second time, or send on what it receives.
    """
    dealt: list[list[int]] = []
    sources: set[int] = set()
    destinations: set[int] = set()
    for index, copy in enumerate(copies):
        source, destination = copy.source, copy.destination
        too_early = copy.relay is not None and source in destinations
        if not dealt or too_early or source in sources or destination in destinations:
            dealt.append([])
            sources, destinations = set(), set()
        dealt[-1].append(index)
        sources.add(source)
        destinations.add(destination)
    return dealt


@kernel
def colours(way_out: NDArray[np.int64], way_in: NDArray[np.int64]) -> NDArray[np.int64]:
    """The round of each edge of a bipartite multigraph, way_out and way_in ``[n]``: int64 ``[n]``.

    Edges are coloured one at a time with the first colours free at their ends; where these differ,
    the path of the two colours from the way in is flipped. It cannot reach the edge's way out: it
    would arrive there by the colour that is free there.
    """
    edges = way_out.size
    colour = np.full(edges, FREE, np.int64)
    if edges == 0:
        return colour
    outs, ins = way_out.max() + 1, way_in.max() + 1
    degree = max(np.bincount(way_out).max(), np.bincount(way_in).max())
    edge_at = np.full((outs + ins, degree), FREE, np.int64)
    path = np.empty(edges, np.int64)
    for edge in range(edges):
        out, into = way_out[edge], outs + way_in[edge]
        first, second = 0, 0
        while edge_at[out, first] != FREE:
            first += 1
        while edge_at[into, second] != FREE:
            second += 1
        length, port, wanted = 0, into, first
        while first != second and edge_at[port, wanted] != FREE:
            other = edge_at[port, wanted]
            path[length] = other
            length += 1
            port = outs + way_in[other] if port < outs else way_out[other]
            wanted = first + second - wanted
        for other in path[:length]:
            edge_at[way_out[other], colour[other]] = FREE
            edge_at[outs + way_in[other], colour[other]] = FREE
        for other in path[:length]:
            colour[other] = first + second - colour[other]
            edge_at[way_out[other], colour[other]] = other
            edge_at[outs + way_in[other], colour[other]] = other
        colour[edge] = first
        edge_at[out, first] = edge
        edge_at[into, first] = edge
    return colour
