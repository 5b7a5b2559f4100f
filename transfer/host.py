"""The host path on CPU: a worker thread copies slabs from shared memory into slots, by chunks."""

import logging
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import ForemoeError, TransferError
from foremoe.transfer.content import Content
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.schedule.urgency import Urgency, chunks_of
from foremoe.transfer.slab import SLAB_ALIGNMENT, align
from foremoe.transfer.transport import HostTransport, ProbeSite
from foremoe.transfer.trial import try_host
from foremoe.transfer.worker import Worker

_log = logging.getLogger("foremoe.transfer")

_LOOK_SECONDS = 0.001  # while no waiting copy's slot is free, how often to look for other copies


@dataclass(slots=True, eq=False)
class _Reading:
    """A copy that waits or is under way.

    give_up_at: if its slot is not free by then. slab: the slot, once it has begun. done: bytes that
    are there, and seconds that took. since, recorded: when the bytes after ``recorded`` began.
    """

    copy: Copy
    generation: int
    give_up_at: float
    slab: NDArray[np.uint8] | None = None
    done: int = 0
    seconds: float = 0.0
    since: float = 0.0
    recorded: int = 0

    @property
    def content(self) -> Content:
        return self.copy.content(self.generation)


class SharedMemoryTransport(HostTransport):
    """Its thread reads the next chunk of whichever copy is most urgent and has a free slot.

    So an urgent copy waits for one chunk of another, whenever it is posted.
    """

    name = "shared-memory host copy"

    def _open(self) -> None:
        self._waiting = Urgency[_Reading]()
        self._last: _Reading | None = None
        nbytes = self._cache.layout.nbytes
        self._chunk_bytes = align(-(-nbytes // chunks_of(nbytes)), SLAB_ALIGNMENT)
        name = f"foremoe-host-copy-{self._rank}"
        self._worker = Worker(name, self._pool.fail_all, when_idle=self._read_on)

    def fill(self, copy: Copy, generation: int) -> None:
        reading = _Reading(copy, generation, time.monotonic() + self._wait_seconds)
        self._worker.post(partial(self._waiting.add, reading, copy.due_ns))

    @classmethod
    def _try(cls, site: ProbeSite) -> str:
        return try_host(cls, site)

    def settle(self, wait_seconds: float) -> None:
        """Nothing to wait for: a slot is not free before its copy has ended."""

    def close(self, wait_seconds: float) -> None:
        if not self._worker.close(wait_seconds):
            _log.warning("host copies of rank %d were given up at the end", self._rank)

    def _read_on(self) -> bool:
        """Read one chunk, or wait a little for a slot; False when no copy is left."""
        reading = self._waiting.first(self._can_go)
        if reading is None:
            return self._wait_for_slots()
        if self._last not in (None, reading):
            self._record_span()
        try:
            self._read(reading)
        except ForemoeError as error:
            self._give_up(reading, error)
        else:
            if reading.done == self._cache.layout.nbytes:
                self._end(reading)
        return True

    def _can_go(self, reading: _Reading) -> bool:
        may_fill = self._pool.may_fill
        return reading.slab is not None or may_fill(reading.copy.slot, reading.content)

    def _wait_for_slots(self) -> bool:
        waiting = self._waiting.waiting()
        for reading in waiting:
            if time.monotonic() > reading.give_up_at:
                slot, wait_seconds = reading.copy.slot, self._wait_seconds
                error = f"slot {slot}: did not become free within {wait_seconds} s"
                self._give_up(reading, TransferError(f"{error}; a rank is late or lost"))
        fills = {reading.copy.slot: reading.content for reading in waiting}
        self._pool.wait_any_fillable(fills, _LOOK_SECONDS)
        return bool(waiting)

    def _read(self, reading: _Reading) -> None:
        """A chunk, or as many as there are while nothing is posted and nothing else is urgent."""
        copy = reading.copy
        if reading.slab is None:
            slab = self._pool.begin_fill(copy.slot, reading.content, wait_seconds=0.0)
            reading.slab = slab.numpy()
        began = time.monotonic()
        if reading is not self._last:
            self._last, reading.since = reading, began
        most_urgent = self._waiting.waiting()[0] is reading
        while True:
            part = reading.slab[reading.done : reading.done + self._chunk_bytes]
            self._cache.read(copy.layer, copy.expert, reading.generation, part, reading.done)
            reading.done += part.size
            if reading.done == reading.slab.size or not most_urgent or self._worker.busy:
                break
        reading.seconds += time.monotonic() - began

    def _end(self, reading: _Reading) -> None:
        copy, nbytes = reading.copy, self._cache.layout.payload_bytes
        self._waiting.remove(reading)
        self._pool.end_fill(copy.slot, reading.content)
        self._statistics.add_copy(Path.HOST, nbytes)
        self._statistics.add_speed(Path.HOST, nbytes, reading.seconds)
        self._record_span()

    def _give_up(self, reading: _Reading, error: ForemoeError) -> None:
        self._waiting.remove(reading)
        self._pool.fail(reading.copy.slot, error)
        if self._last is reading:
            self._last = None

    def _record_span(self) -> None:
        """Of what was read last, until now: one for a copy that nothing overtook."""
        last, self._last = self._last, None
        assert last is not None, "something was read"
        copy, done = last.copy, min(last.done, self._cache.layout.payload_bytes)
        self._statistics.spans.add(
            "host",
            f"expert {copy.expert}",
            round(1e9 * last.since),
            copy.layer,
            done - last.recorded,
        )
        last.recorded = done
