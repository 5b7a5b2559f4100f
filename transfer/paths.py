"""Which path each copy takes, and in which order: the engine's view of the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology
from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import NEVER, Links, slab_ns
from foremoe.transfer.schedule.micro_step import schedule_micro_step
from foremoe.transfer.schedule.timetable import LayerCopies, Timetable
from foremoe.transfer.schedule.urgency import chunks_of

NEW_SHARE = 0.3
LEAST_CHANGE = 0.1
HOPE = 1.5


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


UNMEASURED = PathSpeed(0.0, 0.0, 0.0)


class MicroStepPaths:
    """Chooses paths and order, sharing the links among the copies of one micro-step."""

    def __init__(
        self,
        topology: Topology,
        speed: PathSpeed,
        slab_bytes: int,
        overtake: bool = True,
        relay: bool = False,
    ) -> None:
        """overtake: whether the host path does; relay: whether the peer path does (``Links``)."""
        self.speed = speed
        self._topology = topology
        self._slab_bytes = slab_bytes
        self._overtake = overtake
        self._relay = relay
        self._is_measured = False
        self._dropped = 0  # replicas of the whole group since speeds were last applied
        self._open_links()

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
        wanted = [layer for layer in layers if layer.fills]
        if not wanted:
            return Timetable.empty(self._calendar)
        now_ns = min(layer.ready_ns for layer in layers)
        timetable = schedule_micro_step(wanted, self._links, self._calendar.after(now_ns))
        self._calendar = timetable.calendar
        self._dropped += len(timetable.dropped)
        return timetable

    def apply_speed(self, measured: Sequence[PathSpeed]) -> None:
        """Choose by what the ranks measured, from now on; no copies are under way."""
        first = not self._is_measured
        self.speed = feed_back(self.speed, measured, first, self._dropped > 0)
        self._is_measured |= any(one != UNMEASURED for one in measured)
        self._dropped = 0
        self._open_links()

    def _open_links(self) -> None:
        host, peer, network = (
            slab_ns(self._slab_bytes, max(link, 1.0)) if link else 0
            for link in (self.speed.host, self.speed.peer, self.speed.network)
        )
        chunks = chunks_of(self._slab_bytes)
        self._links = Links(
            self._topology, host, peer, network, chunks, self._relay, self._overtake
        )
        self.restart()


def feed_back(
    current: PathSpeed, measured: Sequence[PathSpeed], first: bool, dropped: bool = False
) -> PathSpeed:
    """The speeds to choose paths by from now on; all ranks give the same arguments.

    measured: of every rank, 0 where a link carried nothing. A layer waits for the slowest copy, so
    the slowest rank counts: its figure moves the current one by ``NEW_SHARE`` of the difference, or
    replaces it if it is the ``first`` that was measured. Differences below a tenth change nothing,
    so that choices do not flutter. dropped: whether replicas were dropped; a link that carried
    nothing is then taken for faster by ``HOPE``, until its copies are tried again.
    """
    return PathSpeed(
        _smoothed(current.host, [speed.host for speed in measured], first, dropped),
        _smoothed(current.peer, [speed.peer for speed in measured], first, dropped),
        _smoothed(current.network, [speed.network for speed in measured], first, dropped),
    )


def _smoothed(current: float, measured: Sequence[float], first: bool, dropped: bool) -> float:
    if current <= 0:
        return current
    seen = [speed for speed in measured if speed > 0]
    if not seen:
        return float(round(HOPE * current)) if dropped else current
    slowest = min(seen)
    if abs(slowest - current) < LEAST_CHANGE * current:
        return current
    return float(round(slowest if first else current + NEW_SHARE * (slowest - current)))
