"""Order of peer copies: rounds in which a rank sends at most once and receives at most once."""

from collections import Counter
from collections.abc import Sequence

Port = tuple[str, int]


def rounds(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Deal ``pairs`` (source, destination), all of one size, into as few rounds as possible.

    Returns the indices of ``pairs`` round by round, ascending in each. A rank is the source of at
    most one pair and the destination of at most one pair in a round. There are exactly as many
    rounds as the busiest port has pairs, which no order can beat (Kőnig 1916: the edges of a
    bipartite multigraph take as many colours as its largest degree). Deterministic.
    """
    degree: Counter[Port] = Counter()
    for source, destination in pairs:
        degree["out", source] += 1
        degree["in", destination] += 1
    colouring = _Colouring(pairs, max(degree.values(), default=0))
    for edge in range(len(pairs)):
        colouring.add(edge)
    return colouring.by_colour()


class _Colouring:
    """Edges coloured one at a time; two-coloured paths are flipped to make room."""

    def __init__(self, pairs: Sequence[tuple[int, int]], colours: int) -> None:
        self.ports: list[tuple[Port, Port]] = [(("out", s), ("in", d)) for s, d in pairs]
        self.colours = colours
        self.colour_of: dict[int, int] = {}
        self.edge_at: dict[tuple[Port, int], int] = {}

    def add(self, edge: int) -> None:
        out_port, in_port = self.ports[edge]
        out_free, in_free = self._free(out_port), self._free(in_port)
        if out_free != in_free:
            self._flip(in_port, out_free, in_free)
        self._paint(edge, out_free)

    def by_colour(self) -> list[list[int]]:
        dealt: list[list[int]] = [[] for _ in range(self.colours)]
        for edge in sorted(self.colour_of):
            dealt[self.colour_of[edge]].append(edge)
        return dealt

    def _free(self, port: Port) -> int:
        return next(c for c in range(self.colours) if (port, c) not in self.edge_at)

    def _flip(self, start: Port, first: int, second: int) -> None:
        """Swap two colours along the path from ``start``, so that ``first`` becomes free there.

        The path cannot reach the new edge's other end: it would arrive there by colour ``first``,
        which is free at that end.
        """
        path: list[int] = []
        port, colour = start, first
        while (port, colour) in self.edge_at:
            edge = self.edge_at[port, colour]
            path.append(edge)
            out_port, in_port = self.ports[edge]
            port = in_port if port == out_port else out_port
            colour = first + second - colour
        flipped = [first + second - self.colour_of[edge] for edge in path]
        for edge in path:
            for end in self.ports[edge]:
                del self.edge_at[end, self.colour_of[edge]]
        for edge, new_colour in zip(path, flipped, strict=True):
            self._paint(edge, new_colour)

    def _paint(self, edge: int, colour: int) -> None:
        self.colour_of[edge] = colour
        for end in self.ports[edge]:
            self.edge_at[end, colour] = edge
