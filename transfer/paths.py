"""Which path each copy takes, and in which order: the engine's view of the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy
from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import Links
from foremoe.transfer.schedule.micro_step import schedule_micro_step
from foremoe.transfer.schedule.timetable import LayerCopies

_FASTEST_SLAB_NS = 2**20  # only the ratio of the speeds matters here
_MOST_TIMES_SLOWER = 2**20


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


class MicroStepPaths:
    """Chooses paths and order, sharing the links among the copies of one micro-step."""

    def __init__(self, topology: Topology, speed: PathSpeed) -> None:
        fastest = max(speed.host, speed.peer)
        host, peer = (
            ceil(_FASTEST_SLAB_NS * min(fastest / path, _MOST_TIMES_SLOWER)) if path else 0
            for path in (speed.host, speed.peer)
        )
        self._links = Links(topology, host, peer, peer, chunks=1)
        self.restart()

    def restart(self) -> None:
        """No copies are under way."""
        self._calendar = Calendar.empty(self._links)
        self._layers: set[int] = set()

    def choose(self, layers: Sequence[LayerCopies]) -> list[Copy]:
        """Give every fill a path, in an order by which each layer's last one ends early.

        Copies chosen before take their part of the links, until a layer comes again: that begins a
        new micro-step. Raises InvalidInputError when a fill has no path at all.
        """
        if any(layer.layer in self._layers for layer in layers):
            self.restart()
        self._layers |= {layer.layer for layer in layers}
        wanted = [layer for layer in layers if layer.fills]
        if not wanted:
            return []
        timetable = schedule_micro_step(wanted, self._links, self._calendar)
        self._calendar = timetable.calendar
        return list(timetable.copies)
