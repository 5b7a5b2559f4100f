"""The host path's worker: an urgent copy overtakes, and none waits for another one's slot."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from foremoe.errors import TransferError
from foremoe.timeline.recorder import SpanRecorder
from foremoe.transfer.content import Content
from foremoe.transfer.copies import Copy
from foremoe.transfer.copies import Path as CopyPath
from foremoe.transfer.host import SharedMemoryTransport
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.schedule import urgency
from foremoe.transfer.schedule.timetable import CopyWindow
from foremoe.transfer.slots import SlotPool, SlotState
from foremoe.transfer.statistics import StatisticsRecorder
from tests.processes import run_ranks
from tests.transfer import toy_group
from tests.transfer.toy_group import ToyRank, layout, true_weights

WANTED = np.array([[4, 5], [0, 1]], np.int32)
LONG = 20.0
SOON, LATER = CopyWindow(0, 10**11), CopyWindow(0, 10**12)


class Gate:
    """Holds the first read up until it is opened, and knows what was read in which order."""

    def __init__(self, cache: HostExpertCache) -> None:
        self.reads: list[tuple[int, int, int]] = []
        self.reached, self.open = threading.Event(), threading.Event()
        read = cache.read

        def gated(layer: int, expert: int, generation: int, out: Any, first: int) -> None:
            self.reads.append((layer, expert, first))
            self.reached.set()
            assert self.open.wait(LONG)
            read(layer, expert, generation, out, first)

        cache.read = gated  # type: ignore[method-assign]


def _overtaken(rank: int, directory: Path) -> None:
    urgency.LEAST_CHUNK_BYTES = 4096
    toy_group.SHAPES = {"gate_up": (96, 64), "down": (64, 64)}
    spans = SpanRecorder(100)
    toy = ToyRank(rank, 2, directory, peer=False, speed=PathSpeed(1e9, 0.0), spans=spans)
    toy.step_optimizer()
    assert toy.cache is not None
    chunks = urgency.chunks_of(toy.layout.nbytes)
    assert chunks > 4
    gate = Gate(toy.cache)
    toy.engine.promise(9, toy.home_of(9), WANTED, window=LATER)
    assert gate.reached.wait(LONG)
    toy.engine.promise(3, toy.home_of(3), WANTED, window=SOON)
    gate.open.set()
    toy.acquire_checked(3, WANTED)
    toy.acquire_checked(9, WANTED)
    first, second = WANTED[rank].tolist()
    read = [(layer, expert) for layer, expert, _ in gate.reads]
    assert read[0] == (9, first)
    assert set(read[1 : 2 * chunks + 1]) == {(3, first), (3, second)}
    assert read[2 * chunks + 1 :] == [(9, first)] * (chunks - 1) + [(9, second)] * chunks
    host = [span for span in spans.spans if span.track == "host"]
    assert [span.layer for span in host] == [9, 3, 3, 9, 9]
    assert sum(span.nbytes for span in host) == 4 * toy.layout.payload_bytes
    dist.barrier()
    toy.close()


def test_an_urgent_copy_posted_later_is_there_before_a_large_one_ends(tmp_path: Path) -> None:
    run_ranks(_overtaken, 2, tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[HostExpertCache]:
    slab = layout()
    made = HostExpertCache.create(tmp_path, [0], 2, slab, local_ranks=1)
    for expert in range(2):
        made.write(0, expert, true_weights(1, 0, expert, slab), 1)
    yield made
    made.unlink()
    made.close()


def _used_slot(cache: HostExpertCache, wait_seconds: float) -> tuple[SlotPool, Any]:
    """Slot 0 is in use, slot 1 free; copies into both are posted, the first more urgent."""
    pool = SlotPool(2, cache.layout, training=False, checksums=False)
    transport = SharedMemoryTransport(0, cache, pool, StatisticsRecorder(1), wait_seconds)
    transport.post([Copy(0, 0, 1, 0, 0, CopyPath.HOST)], 1)
    pool.wait_settled([0], LONG)
    pool.use([], {0: Content(0, 0, 1)})
    urgent, other = Copy(0, 1, 1, 0, 0, CopyPath.HOST, 5), Copy(0, 1, 1, 0, 1, CopyPath.HOST, 9)
    transport.post([urgent, other], 1)
    pool.wait_settled([1], LONG)
    return pool, transport


def test_a_copy_whose_slot_is_taken_holds_no_other_up(cache: HostExpertCache) -> None:
    pool, transport = _used_slot(cache, LONG)
    assert pool.state(0) is SlotState.IN_USE
    pool.release(0, owing=False)
    pool.wait_settled([0], LONG)
    pool.use([], {0: Content(0, 1, 1), 1: Content(0, 1, 1)})
    transport.close(LONG)


def test_a_slot_that_never_gets_free_is_an_error_at_the_deadline(cache: HostExpertCache) -> None:
    pool, transport = _used_slot(cache, 0.2)
    pool.wait_settled([0], LONG)
    pool.release(0, owing=False)
    with pytest.raises(TransferError, match=r"slot 0: did not become free within 0.2 s"):
        pool.use([], {0: Content(0, 1, 1)})
    transport.close(LONG)
