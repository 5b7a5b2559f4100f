"""What the transfer engine did since the last look, and how fast its paths were."""

import logging
import threading
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foremoe.timeline.recorder import SpanRecorder
from foremoe.transfer.copies import Path
from foremoe.transfer.schedule.links import Link
from foremoe.transfer.ticket import Ticket

SAMPLES = 256
SLOW_SECONDS = 5.0

_log = logging.getLogger("foremoe.transfer")


@dataclass(slots=True)
class TransferStatistics:
    """Counters of one rank.

    exposed_seconds: float64 ``[L]``, time compute waited for each layer's replicas.
    exposed_gradient_seconds: time compute waited for gradients to come home.
    host_bytes, peer_bytes: weights received on each path, without padding.
    gradient_bytes: gradients received for own experts.
    copies: replicas received, by path.
    kept: replicas promised again that needed no copy.
    """

    exposed_seconds: NDArray[np.float64]
    exposed_gradient_seconds: float = 0.0
    host_bytes: int = 0
    peer_bytes: int = 0
    gradient_bytes: int = 0
    copies: Counter[Path] = field(default_factory=Counter)
    kept: int = 0


class StatisticsRecorder:
    """Thread-safe counters, taken and reset at once. spans: the same one by one, if recorded."""

    def __init__(self, layers: int, spans: SpanRecorder | None = None) -> None:
        self.spans = spans or SpanRecorder()
        self._lock = threading.Lock()
        self._now = TransferStatistics(np.zeros(layers))
        self._waits: list[tuple[int, Ticket, Ticket]] = []
        self._speeds = {link: deque[float](maxlen=SAMPLES) for link in Link}

    def take(self) -> TransferStatistics:
        with self._lock:
            taken = self._now
            waits, self._waits = self._waits, []
            for row, begun, ended in waits:
                if ended.done():
                    taken.exposed_seconds[row] += ended.seconds_since(begun)
                else:
                    self._waits.append((row, begun, ended))
            self._now = TransferStatistics(np.zeros_like(taken.exposed_seconds))
            return taken

    def take_speed(self, link: Link) -> float:
        """Bytes per second of a link since the last call, 0 if it carried nothing.

        It is the upper quartile of the times in which the link was busy: waiting for a late rank
        says nothing about the link.
        """
        with self._lock:
            samples = sorted(self._speeds[link])
            self._speeds[link].clear()
        return samples[3 * len(samples) // 4] if samples else 0.0

    def add_exposed(self, row: int, layer: int, seconds: float) -> None:
        """Until now; ``row`` is the layer's position among the engine's layers."""
        with self._lock:
            self._now.exposed_seconds[row] += seconds
        self.spans.waited("copies", seconds, layer)
        if seconds > SLOW_SECONDS:
            _log.warning(
                "degraded: slow copies: layer %d waited %.1f s for its replicas", layer, seconds
            )

    def add_exposed_between(self, row: int, begun: Ticket, ended: Ticket) -> None:
        """Time the device waited, counted once it is known."""
        if begun is ended:
            return
        with self._lock:
            self._waits.append((row, begun, ended))

    def add_exposed_gradients(self, seconds: float) -> None:
        """Until now."""
        with self._lock:
            self._now.exposed_gradient_seconds += seconds
        self.spans.waited("gradients", seconds)

    def add_copy(self, path: Path, nbytes: int) -> None:
        with self._lock:
            self._now.copies[path] += 1
            if path is Path.HOST:
                self._now.host_bytes += nbytes
            else:
                self._now.peer_bytes += nbytes

    def add_speed(self, path: Path, nbytes: int, seconds: float, far: bool = False) -> None:
        """A path moved ``nbytes`` in ``seconds``; far: some of it from another node."""
        link = Link.HOST if path is Path.HOST else Link.NETWORK if far else Link.PEER
        if seconds > 0:
            with self._lock:
                self._speeds[link].append(nbytes / seconds)

    def add_gradient(self, nbytes: int) -> None:
        with self._lock:
            self._now.gradient_bytes += nbytes

    def add_kept(self, count: int) -> None:
        with self._lock:
            self._now.kept += count
