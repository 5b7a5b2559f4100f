"""Which ticks of every rank's links are taken: what earlier copies leave to later ones."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.transfer.schedule.links import Link, Links

_COLUMNS = 256


class HostCopies(NamedTuple):
    """Copies into ``rank`` by the host link, int64 ``[n]`` each, and their ticks ``[n, C]``."""

    rank: NDArray[np.int64]
    due_ns: NDArray[np.int64]
    ticks: NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Calendar:
    """busy: uint8 ``[5 P, H]``, rows host in, peer out, peer in, network out, network in by rank.

    base: int64 ``[3]``, by link the tick of column 0; columns after the last one are free. tick_ns:
    int64 ``[3]``, a tick's length, 0 where there is no such link. posted: what takes host links and
    has not ended, which more urgent copies may put off.
    """

    links: Links
    busy: NDArray[np.uint8]
    base: NDArray[np.int64]
    tick_ns: NDArray[np.int64]
    posted: HostCopies

    @classmethod
    def empty(cls, links: Links) -> "Calendar":
        """Nothing is under way."""
        rows = 5 * links.topology.ranks
        tick_ns = np.array(links.tick_ns, np.int64)
        nothing = np.zeros(0, np.int64)
        posted = HostCopies(nothing, nothing, np.zeros((0, links.chunks), np.int64))
        busy = np.zeros((rows, _COLUMNS), np.uint8)
        return cls(links, busy, np.zeros(3, np.int64), tick_ns, posted)

    def copy(self) -> "Calendar":
        return Calendar(self.links, self.busy.copy(), self.base, self.tick_ns, self.posted)

    def after(self, now_ns: int) -> "Calendar":
        """What is still taken from ``now_ns`` on; what ended before is forgotten."""
        base = self._ticks(now_ns)
        busy = np.zeros_like(self.busy)
        ranks = self.links.topology.ranks
        for link, rows in enumerate(
            (slice(ranks), slice(ranks, 3 * ranks), slice(3 * ranks, None))
        ):
            gone = max(0, int(base[link] - self.base[link]))
            kept = self.busy[rows, gone:]
            busy[rows, : kept.shape[1]] = kept
        base = np.maximum(base, self.base)
        left = self.posted.ticks[:, -1] >= base[Link.HOST]
        posted = HostCopies(*(column[left] for column in self.posted))
        return Calendar(self.links, busy, base, self.tick_ns, posted)

    def window(
        self, ready_ns: int, deadline_ns: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By link the first column of a window and the one after its last: int64 ``[3]`` each."""
        first = np.maximum(-self._ticks(-ready_ns) - self.base, 0)
        return first, np.maximum(self._ticks(deadline_ns) - self.base, first)

    def lengthen(self) -> None:
        """Twice as many columns."""
        self.busy = np.pad(self.busy, ((0, 0), (0, self.busy.shape[1])))

    def _ticks(self, time_ns: int) -> NDArray[np.int64]:
        ticks = [time_ns // tick if tick else 0 for tick in self.tick_ns.tolist()]
        return np.array(ticks, np.int64)
