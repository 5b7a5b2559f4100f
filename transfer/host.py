"""The host path on CPU: a worker thread copies slabs from shared memory into slots."""

import time
from collections.abc import Sequence
from functools import partial

from foremoe.errors import ForemoeError
from foremoe.transfer.content import Content
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.transport import HostTransport, ProbeSite
from foremoe.transfer.trial import try_host
from foremoe.transfer.worker import Worker


class SharedMemoryTransport(HostTransport):
    name = "shared-memory host copy"

    def _open(self) -> None:
        self._worker = Worker(f"foremoe-host-copy-{self._rank}", self._pool.fail_all)

    def post(self, copies: Sequence[Copy], generation: int) -> None:
        self._worker.post(partial(super().post, copies, generation))

    def fill(self, copy: Copy, generation: int) -> None:
        try:
            slab = self._pool.begin_fill(copy.slot, self._wait_seconds)
            began = time.monotonic()
            self._cache.read(copy.layer, copy.expert, generation, slab)
            seconds = time.monotonic() - began
        except ForemoeError as error:
            self._pool.fail(copy.slot, error)
            return
        self._pool.end_fill(copy.slot, Content(copy.layer, copy.expert, generation))
        nbytes = self._cache.layout.payload_bytes
        self._statistics.add_copy(Path.HOST, nbytes)
        self._statistics.add_speed(Path.HOST, nbytes, seconds)
        self._statistics.spans.add(
            "host", f"expert {copy.expert}", round(1e9 * began), copy.layer, nbytes
        )

    @classmethod
    def _try(cls, site: ProbeSite) -> str:
        return try_host(cls, site)

    def settle(self, wait_seconds: float) -> None:
        """Nothing to wait for: a slot is not free before its copy has ended."""

    def close(self, wait_seconds: float) -> None:
        self._worker.close(wait_seconds)
