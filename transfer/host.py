"""The host path on CPU: a worker thread copies slabs from shared memory into slots."""

from collections.abc import Sequence
from functools import partial

from foremoe.errors import ForemoeError
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.slots import Content, SlotKey, SlotPool
from foremoe.transfer.statistics import StatisticsRecorder
from foremoe.transfer.transport import Probe, Transport
from foremoe.transfer.worker import Worker


class SharedMemoryTransport(Transport):
    """Serves experts whose home is on this node."""

    def __init__(
        self,
        rank: int,
        cache: HostExpertCache,
        pool: SlotPool,
        statistics: StatisticsRecorder,
        wait_seconds: float,
    ) -> None:
        self._rank = rank
        self._cache = cache
        self._pool = pool
        self._statistics = statistics
        self._wait_seconds = wait_seconds
        self._worker = Worker(f"foremoe-host-copy-{rank}")

    def probe(self) -> Probe:
        return Probe(True, f"host cache of {self._cache.nbytes} bytes is mapped")

    def post(self, copies: Sequence[Copy], generation: int) -> None:
        for copy in copies:
            if copy.destination == self._rank and copy.path is Path.HOST:
                self._worker.post(partial(self.fill, copy, generation))

    def fill(self, copy: Copy, generation: int) -> None:
        """Do one copy on the calling thread; also the way out when the peer path is lost."""
        key = SlotKey(copy.layer, copy.slot)
        try:
            slab = self._pool.begin_fill(key, self._wait_seconds)
            self._cache.read(copy.layer, copy.expert, generation, slab)
        except ForemoeError as error:
            self._pool.fail(key, error)
            return
        self._pool.end_fill(key, Content(copy.expert, generation))
        self._statistics.add_copy(Path.HOST, self._cache.layout.payload_bytes)

    def close(self, wait_seconds: float) -> None:
        self._worker.close(wait_seconds)
