"""The scheduler's kernels in plain Python: slow, unlimited, with the same answers."""

from collections import Counter, deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.transfer.schedule.links import Link
from foremoe.transfer.schedule.place import ANY, DROPPED, Asked, Board, Placed
from foremoe.transfer.schedule.rounds import FREE


def place(
    order: NDArray[np.int64],
    settled: NDArray[np.int64],
    relay: bool,
    asked: Asked,
    board: Board,
    placed: Placed,
) -> bool:
    chunks, columns = placed.columns.shape[1], board.busy.shape[1]
    placed.link[:], placed.sender[:] = DROPPED, DROPPED
    holders: dict[int, list[tuple[int, int]]] = {}  # by expert: (rank, since when in ns)
    enough = True

    def node(rank: int) -> int:
        return rank // board.ranks_per_node

    def ways(i: int, only: int) -> list[tuple[int, int, int]]:
        """(link, sender, first column) of every way that is allowed, in order of preference."""
        home, to = int(asked.source[i]), int(asked.destination[i])
        found = [(int(Link.HOST), home, 0)] if node(home) == node(to) else []
        senders = [(home, 0)]
        if relay and only == ANY:
            senders += holders.get(int(asked.expert[i]), [])
        for rank, since in senders:
            direct = Link.PEER if node(rank) == node(to) else Link.NETWORK
            found.append((int(direct), rank, since))
        return [
            (by, rank, max(int(board.first[by]), -(-since // tick_ns) - int(board.base[by])))
            for by, rank, since in found
            if (tick_ns := int(board.tick_ns[by])) and only in (ANY, by)
        ]

    for i in order.tolist():
        for only in [ANY] if settled[i] == ANY else [int(settled[i]), ANY]:
            candidates = []
            for preference, (by, rank, start) in enumerate(ways(i, only)):
                limit = min(int(board.last[by]), columns)
                both = board.busy[_rows(by, rank, int(asked.destination[i]), board)].max(axis=0)
                free = [t for t in range(start, limit) if not both[t]][:chunks]
                if len(free) == chunks:
                    end = (int(board.base[by]) + free[-1] + 1) * int(board.tick_ns[by])
                    candidates.append((end, preference, by, rank, free))
                elif limit < board.last[by]:
                    enough = False
            if candidates:
                end, _, by, rank, free = min(candidates)
                placed.link[i], placed.sender[i], placed.columns[i] = by, rank, free
                to = int(asked.destination[i])
                if by != Link.HOST:
                    holders.setdefault(int(asked.expert[i]), []).append((to, end))
                for row in _rows(by, rank, to, board):
                    board.busy[row, free] = 1
                break
    return enough


def _rows(link: int, origin: int, destination: int, board: Board) -> list[int]:
    """Host in, peer out, peer in, network out, network in."""
    ranks = board.busy.shape[0] // 5
    if link == Link.HOST:
        return [destination]
    return [(2 * link - 1) * ranks + origin, 2 * link * ranks + destination]


def share(
    order: NDArray[np.int64],
    earliest_ns: int,
    latest_ns: int,
    chunks: int,
    asked: Asked,
    board: Board,
    chosen: NDArray[np.bool_],
) -> bool:
    way_out, way_in = asked.way_out.tolist(), asked.way_in.tolist()

    def slabs(row: int, link: int, end_ns: int) -> int:
        if not board.tick_ns[link]:
            return 0
        by_then = end_ns // int(board.tick_ns[link]) - int(board.base[link])
        first, limit = int(board.first[link]), min(by_then, int(board.last[link]))
        taken = {first + column for column in np.flatnonzero(board.busy[row, first:]).tolist()}
        return len(set(range(first, limit)) - taken) // chunks

    def fits(end_ns: int) -> bool:
        chosen[:] = False
        left = {way_out[i]: slabs(way_out[i], asked.direct[i], end_ns) for i in order}
        satisfied = True
        for row, needed in Counter(way_in[i] for i in order).items():
            i = way_in.index(row)
            if asked.direct[i] == Link.PEER:
                needed -= slabs(int(asked.destination[i]), Link.HOST, end_ns)
            room = slabs(row, int(asked.direct[i]), end_ns)
            satisfied = satisfied and needed <= room
            for _ in range(min(needed, room)):
                if not augment(row, left):
                    satisfied = False
                    break
        return satisfied

    def augment(start: int, left: dict[int, int]) -> bool:
        """Breadth first over ranks that look for a copy; paths as lists of copies to flip."""
        queue: deque[tuple[int, list[int]]] = deque([(start, [])])
        outs_seen: set[int] = set()
        rows_seen = {start}
        while queue:
            row, path = queue.popleft()
            for i in order.tolist():
                out = way_out[i]
                if way_in[i] != row or chosen[i] or out in outs_seen:
                    continue
                outs_seen.add(out)
                if left[out] > 0:
                    left[out] -= 1
                    for copy in [*path, i]:
                        chosen[copy] = not chosen[copy]
                    return True
                for j in order.tolist():
                    if chosen[j] and way_out[j] == out and way_in[j] not in rows_seen:
                        rows_seen.add(way_in[j])
                        queue.append((way_in[j], [*path, i, j]))
        return False

    if not fits(latest_ns):
        return False
    return fits(next(end for end in range(earliest_ns, latest_ns + 1) if fits(end)))


def colours(way_out: NDArray[np.int64], way_in: NDArray[np.int64]) -> NDArray[np.int64]:
    """Alternating paths over a dict of what is coloured how at each port."""
    ports = [
        (("out", s), ("in", d)) for s, d in zip(way_out.tolist(), way_in.tolist(), strict=True)
    ]
    at: dict[tuple[Any, int], int] = {}
    colour = np.full(len(ports), FREE, np.int64)

    def free(port: Any) -> int:
        return next(c for c in range(len(ports)) if (port, c) not in at)

    def repaint(edges: list[int], to: list[int]) -> None:
        for edge in edges:
            for port in ports[edge]:
                at.pop((port, int(colour[edge])), None)
        for edge, new in zip(edges, to, strict=True):
            colour[edge] = new
            at.update({(port, new): edge for port in ports[edge]})

    for edge, (out, into) in enumerate(ports):
        first, second = free(out), free(into)
        path: list[int] = []
        port, wanted = into, first
        while first != second and (port, wanted) in at:
            path.append(at[port, wanted])
            port = next(end for end in ports[path[-1]] if end != port)
            wanted = first + second - wanted
        repaint(path, [first + second - int(colour[other]) for other in path])
        repaint([edge], [first])
    return colour
