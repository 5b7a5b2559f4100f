"""How a slab is cut into chunks, and which copy a link serves next: the most urgent one."""

from bisect import insort
from collections.abc import Callable
from operator import itemgetter
from typing import Generic, TypeVar

CHUNKS = 8  # of a slab, at most
LEAST_CHUNK_BYTES = 2 << 20  # in the time of less, a thread would look for others as long as copy

T = TypeVar("T")


def chunks_of(slab_bytes: int) -> int:
    """Into how many chunks a slab is cut.

    >>> [chunks_of(mebibytes << 20) for mebibytes in (1, 4, 8, 100)]
    [1, 2, 4, 8]
    """
    return max(1, min(CHUNKS, slab_bytes // LEAST_CHUNK_BYTES))


class Urgency(Generic[T]):
    """What waits for a link, the earliest due first; of equals, what was added first.

    Whoever serves the link takes ``first`` again after every chunk, so what is added later but due
    earlier overtakes. On one link no order of chunks keeps more deadlines.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, T]] = []
        self._added = 0

    def add(self, item: T, due_ns: int) -> None:
        insort(self._waiting, (due_ns, self._added, item), key=itemgetter(0, 1))
        self._added += 1

    def first(self, may_go: Callable[[T], bool]) -> T | None:
        """The most urgent one that may go on; None where there is none."""
        return next((item for _, _, item in self._waiting if may_go(item)), None)

    def waiting(self) -> list[T]:
        """All of them, the most urgent first."""
        return [item for _, _, item in self._waiting]

    def remove(self, item: T) -> None:
        self._waiting = [entry for entry in self._waiting if entry[2] is not item]
