"""Which path each copy takes, and in which order: the engine's view of the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology
from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import NEVER, Links, slab_ns
from foremoe.transfer.schedule.micro_step import schedule_micro_step
from foremoe.transfer.schedule.timetable import LayerCopies, Timetable

CHUNKS = 8  # of a slab


@dataclass(frozen=True, slots=True)
class PathSpeed:
    """Bytes per second one rank moves on each link; 0 where there is none.

    host: from its node's cache. peer: from ranks of its node. network: from those of other nodes.
    All ranks must hold the same figures, because every rank derives every rank's paths.
    """

    host: float = 8e9
    peer: float = 4e9
    network: float = 4e9

    def __post_init__(self) -> None:
        if not (self.host >= 0 and self.peer >= 0 and self.network >= 0):
            raise InvalidInputError(
                f"path speed: bytes per second must not be negative, got {self.host}, {self.peer}, "
                f"{self.network}"
            )


class MicroStepPaths:
    """Chooses paths and order, sharing the links among the copies of one micro-step."""

    def __init__(
        self, topology: Topology, speed: PathSpeed, slab_bytes: int, chunks: int = CHUNKS
    ) -> None:
        """chunks: 1 where there are no deadlines, as slabs are moved whole."""
        host, peer, network = (
            slab_ns(slab_bytes, max(link, 1.0)) if link else 0
            for link in (speed.host, speed.peer, speed.network)
        )
        self._links = Links(topology, host, peer, network, chunks)
        self.restart()

    def restart(self) -> None:
        """No copies are under way."""
        self._calendar = Calendar.empty(self._links)
        self._layers: set[int] = set()

    def choose(self, layers: Sequence[LayerCopies]) -> Timetable:
        """Give every fill a path, in an order by which each layer's last one ends early.

        Copies chosen before take their part of the links. Layers without deadlines say nothing of
        the time: of them, one that comes again begins a new micro-step on free links. Raises
        InvalidInputError when a fill has no path at all.
        """
        timeless = {layer.layer for layer in layers if layer.deadline_ns == NEVER}
        if timeless & self._layers:
            self.restart()
        self._layers |= timeless
        now_ns = min((layer.ready_ns for layer in layers), default=0)
        wanted = [layer for layer in layers if layer.fills]
        timetable = schedule_micro_step(wanted, self._links, self._calendar.after(now_ns))
        self._calendar = timetable.calendar
        return timetable
