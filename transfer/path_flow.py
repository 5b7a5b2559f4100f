"""Which copies must leave the host path so that all of a layer's copies end by a given time."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transfer:
    """One slab from rank ``source`` to rank ``destination``; ``host`` if the cache may serve it."""

    source: int
    destination: int
    host: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """Slabs that each rank's links can still carry by the given time."""

    host_in: Sequence[int]
    peer_in: Sequence[int]
    peer_out: Sequence[int]


def peer_share(transfers: Sequence[Transfer], capacity: Capacity) -> set[int] | None:
    """The fewest transfers (indices) whose move to the peer path makes everything fit, or None.

    All slabs have one size, so this is an integral flow: source -> its transfers -> destination,
    where what a destination's host link cannot carry is a lower bound on what it must get from
    peers. Each unit of demand finds its source by an augmenting path.
    """
    flow = _Flow(transfers, capacity)
    for index, transfer in enumerate(transfers):
        if not transfer.host and not flow.force(index):
            return None
    for destination, demand in flow.demands():
        for _ in range(demand):
            if not flow.augment(destination, set()):
                return None
    return flow.chosen


class _Flow:
    def __init__(self, transfers: Sequence[Transfer], capacity: Capacity) -> None:
        self.transfers = transfers
        self.chosen: set[int] = set()
        self._host_in = capacity.host_in
        self._left_in = list(capacity.peer_in)
        self._left_out = list(capacity.peer_out)
        self._by_destination: dict[int, list[int]] = {}
        self._by_source: dict[int, list[int]] = {}
        for index, transfer in enumerate(transfers):
            self._by_destination.setdefault(transfer.destination, []).append(index)
            self._by_source.setdefault(transfer.source, []).append(index)

    def force(self, index: int) -> bool:
        """Send a transfer by peer; False when its ports are full."""
        transfer = self.transfers[index]
        if self._left_in[transfer.destination] < 1 or self._left_out[transfer.source] < 1:
            return False
        self._left_in[transfer.destination] -= 1
        self._left_out[transfer.source] -= 1
        self.chosen.add(index)
        return True

    def demands(self) -> list[tuple[int, int]]:
        """(destination, transfers its host link cannot carry beyond those by peer already)."""
        found: list[tuple[int, int]] = []
        for destination, indices in self._by_destination.items():
            by_host = sum(index not in self.chosen for index in indices)
            found.append((destination, max(0, by_host - max(0, self._host_in[destination]))))
        return found

    def augment(self, destination: int, visited: set[int]) -> bool:
        """Give ``destination`` one more transfer by peer; others make way at full sources."""
        if not visited and self._left_in[destination] < 1:
            return False
        for index in self._by_destination[destination]:
            source = self.transfers[index].source
            if index in self.chosen or source in visited:
                continue
            visited.add(source)
            if self._left_out[source] > 0:
                self._left_out[source] -= 1
            elif not self._release(source, visited):
                continue
            self.chosen.add(index)
            self._left_in[destination] -= 1
            return True
        return False

    def _release(self, source: int, visited: set[int]) -> bool:
        """Take one transfer from a full source, whose destination finds another one."""
        for index in self._by_source[source]:
            if index not in self.chosen or not self.transfers[index].host:
                continue
            destination = self.transfers[index].destination
            self.chosen.remove(index)
            self._left_in[destination] += 1
            if self.augment(destination, visited):
                return True
            self.chosen.add(index)
            self._left_in[destination] -= 1
        return False
