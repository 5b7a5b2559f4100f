"""Which path each copy takes: host and peer share the work in proportion to their speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy, Fill, Path
from foremoe.transfer.path_flow import Capacity, Transfer, peer_share


@dataclass(frozen=True, slots=True)
class PathSpeed:
    """Bytes per second one rank moves on each path; 0 where the path does not exist.

    All ranks must hold the same figures, because every rank derives every rank's paths.
    """

    host: float = 8e9
    peer: float = 4e9

    def __post_init__(self) -> None:
        if not (self.host >= 0 and self.peer >= 0):
            raise InvalidInputError(
                f"path speed: bytes per second must not be negative, got {self.host}, {self.peer}"
            )


@dataclass(slots=True)
class PathLoad:
    """Slabs that each rank's links carry so far in the micro-step, by rank."""

    host_in: list[int]
    peer_in: list[int]
    peer_out: list[int]

    @classmethod
    def empty(cls, ranks: int) -> "PathLoad":
        return cls([0] * ranks, [0] * ranks, [0] * ranks)

    def copy(self) -> "PathLoad":
        return PathLoad(self.host_in.copy(), self.peer_in.copy(), self.peer_out.copy())

    def add(self, transfer: Transfer, path: Path) -> None:
        if path is Path.HOST:
            self.host_in[transfer.destination] += 1
        else:
            self.peer_in[transfer.destination] += 1
            self.peer_out[transfer.source] += 1

    def peer_slabs(self, transfer: Transfer) -> int:
        """Slabs on the busier of the transfer's two peer links."""
        return max(self.peer_out[transfer.source], self.peer_in[transfer.destination])

    def ends_sooner_by_peer(self, transfer: Transfer, speed: PathSpeed) -> bool:
        if speed.peer <= 0:
            return False
        by_host = (self.host_in[transfer.destination] + 1) / speed.host
        return (self.peer_slabs(transfer) + 1) / speed.peer < by_host

    def room(self, end: Fraction, speed: PathSpeed) -> Capacity:
        """Slabs that each link can carry until ``end`` (in slabs per unit of speed) on top."""
        host, peer = floor(end * Fraction(speed.host)), floor(end * Fraction(speed.peer))
        return Capacity(
            [max(0, host - slabs) for slabs in self.host_in],
            [max(0, peer - slabs) for slabs in self.peer_in],
            [max(0, peer - slabs) for slabs in self.peer_out],
        )


def choose_paths(
    layer: int,
    fills: Sequence[Fill],
    home: NDArray[np.int32],
    topology: Topology,
    speed: PathSpeed,
    load: PathLoad,
) -> list[Copy]:
    """Give every fill a path, so that the last of them ends as early as possible.

    Each link carries its slabs one after the other, behind those in ``load``. The host path reads
    the node's cache, so it serves homes of the same node only. Giving each fill the path on which
    it ends first is mostly optimal; where it is not, an exact flow takes its place. Equal ends take
    the host path, which costs the home rank nothing. ``load`` is updated in place.

    Raises InvalidInputError when a fill has no path at all; ``load`` is then unchanged.
    """
    transfers = [_transfer(fill, int(home[fill.expert]), topology, speed) for fill in fills]
    by_peer = _first_to_end(transfers, speed, load)
    by_peer = _sooner(transfers, by_peer, speed, load) or by_peer
    copies: list[Copy] = []
    for index, (fill, transfer) in enumerate(zip(fills, transfers, strict=True)):
        path = Path.PEER if index in by_peer else Path.HOST
        copies.append(Copy(layer, fill.expert, transfer.source, fill.rank, fill.slot, path))
        load.add(transfer, path)
    return copies


class MicroStepPaths:
    """Chooses paths layer by layer, sharing the links among the copies of one micro-step."""

    def __init__(self, topology: Topology, speed: PathSpeed) -> None:
        self._topology = topology
        self._speed = speed
        self.restart()

    def restart(self) -> None:
        """No copies are under way."""
        self._load = PathLoad.empty(self._topology.ranks)
        self._layers: set[int] = set()

    def choose(self, layer: int, fills: Sequence[Fill], home: NDArray[np.int32]) -> list[Copy]:
        """As ``choose_paths``; a layer that comes again begins a new micro-step."""
        if layer in self._layers:
            self.restart()
        self._layers.add(layer)
        return choose_paths(layer, fills, home, self._topology, self._speed, self._load)


def _transfer(fill: Fill, source: int, topology: Topology, speed: PathSpeed) -> Transfer:
    host = speed.host > 0 and topology.node_of(source) == topology.node_of(fill.rank)
    if not host and speed.peer <= 0:
        raise InvalidInputError(
            f"no path from rank {source} to rank {fill.rank}: the host cache serves one node "
            "only and there is no peer group"
        )
    return Transfer(source, fill.rank, host)


def _first_to_end(transfers: Sequence[Transfer], speed: PathSpeed, load: PathLoad) -> set[int]:
    """Indices of those that go by peer when each takes the path on which it ends first."""
    so_far = load.copy()
    by_peer: set[int] = set()
    for index, transfer in enumerate(transfers):
        if not transfer.host or so_far.ends_sooner_by_peer(transfer, speed):
            by_peer.add(index)
        so_far.add(transfer, Path.PEER if index in by_peer else Path.HOST)
    return by_peer


def _sooner(
    transfers: Sequence[Transfer], by_peer: set[int], speed: PathSpeed, load: PathLoad
) -> set[int] | None:
    """Another choice that ends before ``by_peer`` does, as early as possible; None if none does."""
    best: set[int] | None = None
    ends = _possible_ends(transfers, by_peer, speed, load)
    low, high = 0, len(ends)  # no choice ends by ends[low - 1], one does by ends[high]
    while low < high:
        middle = high - 1 if best is None else (low + high) // 2
        share = peer_share(transfers, load.room(ends[middle], speed))
        if share is None:
            low = middle + 1
        else:
            best, high = share, middle
    return best


def _possible_ends(
    transfers: Sequence[Transfer], by_peer: set[int], speed: PathSpeed, load: PathLoad
) -> list[Fraction]:
    """Times before the end of ``by_peer`` at which a link could end its last slab, ascending."""
    links = [Fraction(link) for link in (speed.host, speed.peer) if link > 0]
    end = last_end(transfers, by_peer, speed, load)
    times = {slabs / link for link in links for slabs in range(1, floor(end * link) + 1)}
    return sorted(time for time in times if time < end)


def last_end(
    transfers: Sequence[Transfer], by_peer: set[int], speed: PathSpeed, load: PathLoad
) -> Fraction:
    """When the last of ``transfers`` ends, those in ``by_peer`` by peer, behind ``load``."""
    after = load.copy()
    for index, transfer in enumerate(transfers):
        after.add(transfer, Path.PEER if index in by_peer else Path.HOST)
    ends = [
        after.peer_slabs(transfer) / Fraction(speed.peer)
        if index in by_peer
        else after.host_in[transfer.destination] / Fraction(speed.host)
        for index, transfer in enumerate(transfers)
    ]
    return max(ends, default=Fraction(0))
