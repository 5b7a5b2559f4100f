"""The host path on CUDA: slabs go from pinned shared memory into slots on a stream of their own."""

import logging
from collections import deque
from dataclasses import dataclass

import torch

from foremoe.errors import ForemoeError, TransferError
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.pinning import PinnedSlabs
from foremoe.transfer.ticket import Ticket, mark, side_stream
from foremoe.transfer.transport import HostTransport, ProbeSite, cuda_device
from foremoe.transfer.trial import trial_cache, try_host

_log = logging.getLogger("foremoe.transfer")


@dataclass(frozen=True, slots=True)
class _Flight:
    """One copy that was enqueued."""

    copy: Copy
    generation: int
    begun: Ticket
    ended: Ticket


class HostStreamTransport(HostTransport):
    """Enqueues its copies from the calling thread; the copy engine does them, no SM is taken.

    Every slot and slab lives as long as the engine, so nothing is told to the caching allocator
    (``record_stream``); events alone say when a slot may be overwritten. Works on the CPU as well,
    where a copy is done when ``post`` returns.
    """

    name = "pinned host copy"

    def _open(self) -> None:
        self.stream = side_stream(self._pool.device)
        self._flights: deque[_Flight] = deque()
        self._pinned = self._pin() if self._pool.device.type == "cuda" else None

    @property
    def pinned(self) -> bool:
        """Whether copies from the cache run by themselves."""
        return self._pinned is not None

    @classmethod
    def _try(cls, site: ProbeSite) -> str:
        device = cuda_device()
        with trial_cache(site) as cache:
            PinnedSlabs(cache, device, site.wait_seconds).close()
        return try_host(cls, site, device)

    def fill(self, copy: Copy, generation: int) -> None:
        try:
            self._cache.check(copy.layer, copy.expert, generation)
            source = self._cache.slab(copy.layer, copy.expert)
            with torch.cuda.stream(self.stream):
                content = copy.content(generation)
                slab = self._pool.begin_fill(copy.slot, content, self._wait_seconds)
                begun = mark(self._pool.device, timed=True)
                slab.copy_(source, non_blocking=True)
                ended = mark(self._pool.device, timed=True)
        except ForemoeError as error:
            self._pool.fail(copy.slot, error)
            return
        self._pool.end_fill(copy.slot, content, ended)
        self._statistics.add_copy(Path.HOST, self._cache.layout.payload_bytes)
        self._flights.append(_Flight(copy, generation, begun, ended))

    def settle(self, wait_seconds: float) -> None:
        """Wait until no slab of the cache is being read, so that its writers may go on.

        Raises StaleGenerationError when one was written meanwhile, TransferError at the deadline.
        """
        while self._flights:
            flight = self._flights.popleft()
            flight.ended.settle(wait_seconds, f"host copy into slot {flight.copy.slot}")
            seconds = flight.ended.seconds_since(flight.begun)
            self._statistics.add_speed(Path.HOST, self._cache.layout.payload_bytes, seconds)
            self._cache.check(flight.copy.layer, flight.copy.expert, flight.generation)

    def close(self, wait_seconds: float) -> None:
        try:
            self.settle(wait_seconds)
        except ForemoeError as error:
            _log.warning("host copies were given up at the end: %s", error)
        if self._pinned is not None:
            self._pinned.close()

    def _pin(self) -> PinnedSlabs | None:
        try:
            return PinnedSlabs(self._cache, self._pool.device, self._wait_seconds)
        except TransferError as error:
            _log.warning(
                "degraded: host cache is not pinned, its copies block the training thread: %s",
                error,
            )
            return None
