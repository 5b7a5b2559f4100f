"""A thread that runs jobs one after the other, in the order they were posted."""

import logging
import queue
import threading
from collections.abc import Callable

from foremoe.errors import TransferError

Job = Callable[[], None]

_log = logging.getLogger("foremoe.transfer")


def _nothing_left() -> bool:
    return False


class Worker:
    """First in, first out; a job reports its own failures and never blocks without a deadline."""

    def __init__(
        self,
        name: str,
        died: Callable[[TransferError], None],
        when_idle: Callable[[], bool] = _nothing_left,
    ) -> None:
        """``when_idle`` runs when no job is queued, again and again until it returns False.

        A job that raises is a bug and ends the thread; ``died`` then tells those who wait for it.
        """
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._when_idle = when_idle
        self._died = died
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, job: Job) -> None:
        """Queue ``job``; returns at once."""
        self._jobs.put(job)

    @property
    def busy(self) -> bool:
        """Whether jobs are queued."""
        return not self._jobs.empty()

    def close(self, wait_seconds: float) -> bool:
        """End the thread after the jobs queued so far; False if it still runs at the deadline."""
        self._jobs.put(None)
        self._thread.join(wait_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                job()
            while self._when_idle():
                pass
        except BaseException as error:  # noqa: BLE001 - nobody else would hear of it
            _log.error("worker thread %s died", self._thread.name, exc_info=True)
            self._died(TransferError(f"worker thread {self._thread.name} died: {error!r}"))

    def _next(self) -> Job | None:
        while self._jobs.empty() and self._when_idle():
            pass
        return self._jobs.get()
