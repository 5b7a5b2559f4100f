"""Which path each copy takes: host and peer share the work in proportion to their speed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy, Fill, Path


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
    """Slabs that each rank's links carry so far in the micro-step, int64 ``[P]`` each."""

    host_in: NDArray[np.int64]
    peer_in: NDArray[np.int64]
    peer_out: NDArray[np.int64]

    @classmethod
    def empty(cls, ranks: int) -> "PathLoad":
        return cls(np.zeros(ranks, np.int64), np.zeros(ranks, np.int64), np.zeros(ranks, np.int64))

    def add(self, copy: Copy) -> None:
        if copy.path is Path.HOST:
            self.host_in[copy.destination] += 1
        else:
            self.peer_in[copy.destination] += 1
            self.peer_out[copy.source] += 1


def choose_paths(
    layer: int,
    fills: Sequence[Fill],
    home: NDArray[np.int32],
    topology: Topology,
    speed: PathSpeed,
    load: PathLoad,
) -> list[Copy]:
    """Give every fill the path on which it would end first, behind what ``load`` already carries.

    The host path reads the node's cache, so it serves homes of the same node only. Equal ends take
    the host path, which costs the home rank nothing. ``load`` is updated in place.

    Raises InvalidInputError when a fill has no path at all.
    """
    copies: list[Copy] = []
    for fill in fills:
        source = int(home[fill.expert])
        path = _earliest(fill.rank, source, topology, speed, load)
        copy = Copy(layer, fill.expert, source, fill.rank, fill.slot, path)
        load.add(copy)
        copies.append(copy)
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


def _earliest(
    destination: int, source: int, topology: Topology, speed: PathSpeed, load: PathLoad
) -> Path:
    host_serves = speed.host > 0 and topology.node_of(source) == topology.node_of(destination)
    if not host_serves and speed.peer <= 0:
        raise InvalidInputError(
            f"no path from rank {source} to rank {destination}: the host cache serves one node "
            "only and there is no peer group"
        )
    if not host_serves:
        return Path.PEER
    if speed.peer <= 0:
        return Path.HOST
    host_end = (int(load.host_in[destination]) + 1) / speed.host
    busier_port = max(int(load.peer_out[source]), int(load.peer_in[destination]))
    return Path.HOST if host_end <= (busier_port + 1) / speed.peer else Path.PEER
