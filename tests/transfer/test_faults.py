"""Injected faults: a named, logged degraded mode or a clear error in time, never wrong bytes."""

import logging
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from foremoe.errors import TransferError
from foremoe.transfer import statistics as statistics_module
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.selection import Candidate, first_that_works
from tests.processes import run_ranks
from tests.transfer.faults import flip_a_bit, kill_worker_of, lose_copies, slow_reads
from tests.transfer.toy_group import LAYERS, ToyRank

WANTED = np.array([[4, 5], [0, 1]], np.int32)
NOTHING = np.full((2, 2), -1, np.int32)
HOST_FIRST, PEER_FIRST = PathSpeed(host=1e6, peer=1.0), PathSpeed(host=1.0, peer=1e6)
LONG = 60.0  # a wait that a test would notice


def messages() -> list[str]:
    """What the transfer room logs from now on in this process."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("foremoe.transfer").addHandler(handler)
    return found


def _slow(rank: int, directory: Path) -> list[str]:
    statistics_module.SLOW_SECONDS = 0.2
    toy = ToyRank(rank, 2, directory, speed=HOST_FIRST)
    log = messages()
    assert toy.cache is not None
    if rank == 0:
        slow_reads(toy.cache, 0.15)
    toy.step_optimizer()
    for layer in LAYERS:
        toy.promise(layer, WANTED)
    for layer in LAYERS:
        toy.acquire_checked(layer, WANTED)
        toy.engine.release(layer)
    exposed = toy.engine.statistics().exposed_seconds
    assert (exposed > 0.2).all() == (rank == 0), exposed
    toy.engine.return_gradients()
    toy.collect_gradients()
    toy.close()
    return log


def test_a_slow_link_costs_time_that_is_seen_and_logged(tmp_path: Path) -> None:
    log, quiet = run_ranks(_slow, 2, tmp_path)
    assert [line.split(" waited ")[0] for line in log] == [
        f"degraded: slow copies: layer {layer}" for layer in LAYERS
    ]
    assert quiet == []


def _lost(rank: int, directory: Path) -> None:
    toy = ToyRank(rank, 2, directory, speed=HOST_FIRST, wait_seconds=0.5)
    if rank == 0:
        lose_copies(toy.engine, 5)
    toy.step_optimizer()
    toy.promise(3, WANTED)
    if rank == 0:
        with pytest.raises(TransferError, match=r"slot 1: did not fill within 0.5 s \(it is free"):
            toy.engine.acquire(3)
    else:
        toy.acquire_checked(3, WANTED)
    dist.barrier()
    toy.close()


def test_a_lost_copy_is_an_error_at_the_deadline(tmp_path: Path) -> None:
    run_ranks(_lost, 2, tmp_path)


def _dead_worker(rank: int, directory: Path, path: str) -> list[str]:
    speed = HOST_FIRST if path == "host" else PEER_FIRST
    toy = ToyRank(rank, 2, directory, speed=speed, wait_seconds=LONG)
    log = messages()
    toy.step_optimizer()
    dist.barrier()
    began = time.monotonic()
    if rank == 0:
        kill_worker_of(toy.engine, path)
        toy.promise(3, WANTED)
        with pytest.raises(TransferError, match=rf"{path}-copy-0 died: ZeroDivisionError"):
            toy.engine.acquire(3)
        toy.promise(5, WANTED)
        with pytest.raises(TransferError, match=rf"{path}-copy-0 died: ZeroDivisionError"):
            toy.engine.acquire(5)
        toy.engine.close(0.1)
    assert time.monotonic() - began < LONG / 4
    dist.barrier()
    toy.close()
    return log


@pytest.mark.parametrize("path", ["host", "peer"])
def test_a_worker_that_dies_is_an_error_at_once(tmp_path: Path, path: str) -> None:
    log, _ = run_ranks(_dead_worker, 2, tmp_path, path)
    assert log[0] == f"worker thread foremoe-{path}-copy-0 died"


def _changed_bits(rank: int, directory: Path) -> None:
    toy = ToyRank(rank, 2, directory, speed=HOST_FIRST, checksums=True)
    toy.step_optimizer()
    assert toy.cache is not None
    if rank == 1:
        flip_a_bit(toy.cache.slab(3, 4))
    dist.barrier()
    toy.promise(3, WANTED)
    if rank == 0:
        with pytest.raises(TransferError, match="layer 3 expert 4 generation 1 are not those"):
            toy.engine.acquire(3)
        toy.engine.abandon()
    else:
        toy.acquire_checked(3, WANTED)
        toy.engine.release(3)
    toy.promise(5, WANTED)
    replica = toy.acquire_checked(5, WANTED)[0]
    flip_a_bit(toy.engine._pool.weights(replica._slot))
    with pytest.raises(TransferError, match="were changed under way or in memory"):
        replica.check_held(replica.content)
    toy.engine.release(5)
    dist.barrier()
    toy.close()


def test_changed_bits_are_found_by_checksums_before_they_are_used(tmp_path: Path) -> None:
    run_ranks(_changed_bits, 2, tmp_path)


def _refuse(reason: str, refused_by: int, rank: int) -> str:
    if rank == refused_by:
        raise TransferError(reason)
    return reason


def _transports_fail(rank: int) -> tuple[str | None, str | None, list[str]]:
    """Each rank refuses another one of the first two."""
    log, group = messages(), dist.group.WORLD
    assert group is not None
    here = partial(_refuse, rank=rank)
    candidates = [
        Candidate("first", partial(here, "no device", 1), lambda: "first"),
        Candidate("second", lambda: None, partial(here, "no memory", 0)),
        Candidate("third", lambda: None, lambda: "third"),
    ]
    found = first_that_works(candidates, group)
    return found, first_that_works(candidates[:2], group), log


def test_a_transport_that_fails_on_one_rank_is_named_and_left_by_all() -> None:
    for found, nothing, log in run_ranks(_transports_fail, 2):
        assert (found, nothing) == ("third", None)
        said = ["degraded: no first: rank 1: no device", "degraded: no second: rank 0: no memory"]
        assert log == said * 2


def _ledgers_apart(rank: int) -> None:
    """The ranks differ in what rank 0 must hold: no rank may take the other's word for it."""
    toy = ToyRank(rank, 2, None, wait_seconds=1.0)
    toy.step_optimizer()
    wanted = NOTHING.copy()
    wanted[0, 0] = 4 + rank
    toy.promise(3, wanted)
    if rank == 0:
        with pytest.raises(TransferError, match="peer path lost"):
            toy.engine.acquire(3)
    toy.close()
    dist.barrier()


def test_ranks_that_disagree_get_an_error_and_not_the_wrong_expert() -> None:
    run_ranks(_ledgers_apart, 2)
