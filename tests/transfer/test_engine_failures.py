"""Lost and silent ranks: another path, a clear error, never a hang and never wrong bytes."""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from foremoe.errors import TransferError
from foremoe.transfer.copies import Path as CopyPath
from foremoe.transfer.paths import PathSpeed
from tests.processes import _context as processes
from tests.processes import run_ranks
from tests.transfer.toy_group import LAYERS, ToyRank

WANTED = np.array([[4, 5], [0, 1]], np.int32)
PEER_FIRST = PathSpeed(host=1.0, peer=1e6)
WAIT_SECONDS = 1.0
SOON = 20.0  # on a busy machine, too; who ignores WAIT_SECONDS waits 30 s or more


class _Clock:
    """Asserts that a block did not hang; that it waited as configured, the error's text says."""

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self._started < WAIT_SECONDS + SOON


def _silent(rank: int, directory: Path | None) -> None:
    """Rank 1 is alive but never passes the hook points."""
    toy = ToyRank(rank, 2, directory, wait_seconds=WAIT_SECONDS, speed=PEER_FIRST)
    toy.step_optimizer()
    if rank == 0:
        toy.promise(3, WANTED)
        with _Clock(), pytest.raises(TransferError, match=r"peer path lost on rank 0.* 500ms"):
            toy.engine.acquire(3)
        assert toy.engine.peer_path_lost
        toy.engine.abandon()
        toy.promise(3, WANTED)
        with _Clock(), pytest.raises(TransferError, match=r"peer path lost on rank 0.* 500ms"):
            toy.engine.acquire(3)
    with _Clock():
        toy.close()
    dist.barrier()


def test_a_silent_rank_is_an_error_within_the_deadline() -> None:
    run_ranks(_silent, 2, None)


def _silent_with_cache(rank: int, directory: Path) -> list[str]:
    toy = ToyRank(rank, 2, directory, wait_seconds=WAIT_SECONDS, speed=PEER_FIRST)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("foremoe.transfer").addHandler(handler)
    toy.step_optimizer()
    if rank == 0:
        for layer in LAYERS:
            toy.promise(layer, WANTED)
        for layer in LAYERS:
            with _Clock():
                toy.acquire_checked(layer, WANTED)
        seen = toy.engine.statistics()
        assert seen.copies == {CopyPath.HOST: 6}
        assert seen.exposed_seconds[0] > WAIT_SECONDS / 4
        for layer in LAYERS:
            toy.return_gradients(layer)
        with _Clock(), pytest.raises(TransferError, match="peer path lost"):
            toy.collect_gradients()
        assert toy.collect_gradients() == []
        with _Clock(), pytest.raises(TransferError, match=r"local ranks \[1\] did not follow"):
            toy.step_optimizer()
    toy.close()
    dist.barrier()
    return messages


def test_the_host_cache_serves_when_the_peer_path_is_lost(tmp_path: Path) -> None:
    messages, _ = run_ranks(_silent_with_cache, 2, tmp_path)
    assert len(messages) == 1
    assert "the host cache serves in its place" in messages[0]


def _lost_gradients(rank: int) -> None:
    toy = ToyRank(rank, 2, None, wait_seconds=WAIT_SECONDS)
    toy.step_optimizer()
    toy.promise(3, WANTED)
    toy.acquire_checked(3, WANTED)
    if rank == 0:
        toy.return_gradients(3)
        with _Clock(), pytest.raises(TransferError, match="peer path lost"):
            toy.collect_gradients()
    toy.close()
    dist.barrier()


def test_gradients_that_do_not_come_are_an_error_within_the_deadline() -> None:
    run_ranks(_lost_gradients, 2)


def _never_started(rank: int) -> None:
    if rank == 0:
        with _Clock(), pytest.raises(TransferError, match=r"did not start within 1\.0 s.* 1000ms"):
            ToyRank(rank, 2, None, wait_seconds=WAIT_SECONDS)
    else:
        dist.new_group(backend="gloo")
    dist.barrier()


def test_a_rank_that_never_starts_is_an_error_within_the_deadline() -> None:
    run_ranks(_never_started, 2)


def _close_while_waiting(rank: int) -> None:
    toy = ToyRank(rank, 2, None, wait_seconds=60.0)
    toy.step_optimizer()
    if rank == 0:
        toy.promise(3, WANTED)
        with _Clock():
            toy.engine.close(wait_seconds=0.5)
        left = [t.name for t in threading.enumerate() if t.name.startswith("foremoe")]
        assert left == []
    dist.barrier()
    toy.close()


def test_close_is_bounded_while_a_copy_waits_for_a_silent_rank() -> None:
    run_ranks(_close_while_waiting, 2)


def _die(rank: int, directory: Path) -> str:
    """Rank 2 is killed with gradients and copies under way; rank 1 talks to rank 0 only."""
    toy = ToyRank(rank, 3, directory, experts=9, speed=PEER_FIRST, wait_seconds=60.0)
    wanted = np.array([[6, -1], [0, -1], [1, -1]], np.int32)
    toy.step_optimizer()
    toy.promise(3, wanted)
    toy.acquire_checked(3, wanted)
    dist.barrier()
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    toy.return_gradients(3)
    toy.promise(3, wanted)
    toy.promise(5, wanted)
    started = time.monotonic()
    if rank == 0:
        with pytest.raises(TransferError, match="peer path lost"):
            toy.collect_gradients()
    toy.acquire_checked(3, wanted)
    toy.acquire_checked(5, wanted)
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        assert toy.engine.peer_path_lost
        store.set("rank 0 noticed", "")
    store.wait(["rank 0 noticed"], timedelta(seconds=30))
    toy.promise(LAYERS[2], wanted)
    toy.acquire_checked(LAYERS[2], wanted)
    assert toy.engine.peer_path_lost
    assert time.monotonic() - started < SOON, "a dead rank must be noticed without a deadline"
    store.set(f"rank {rank} done", "")
    store.wait(["rank 0 done", "rank 1 done"], timedelta(seconds=30))
    toy.engine.release(LAYERS[2])
    toy.engine.release(3)
    toy.engine.release(5)
    toy.close()
    return "survived"


def _rank_that_may_die(
    rank: int, folder: str, answer: Connection, function: Callable[..., Any], directory: Path
) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=3,
        timeout=timedelta(seconds=60),
    )
    answer.send(function(rank, directory))


def test_ranks_survive_a_killed_one_and_nothing_stays_in_shared_memory(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pipes = [processes.Pipe(duplex=False) for _ in range(3)]
        ranks = [
            processes.Process(
                target=_rank_that_may_die, args=(rank, folder, pipes[rank][1], _die, tmp_path)
            )
            for rank in range(3)
        ]
        for process in ranks:
            process.start()
        try:
            for rank in (0, 1):
                assert pipes[rank][0].poll(60), f"rank {rank} hangs"
                assert pipes[rank][0].recv() == "survived"
            ranks[2].join(10)
            assert ranks[2].exitcode == -signal.SIGKILL
        finally:
            for process in ranks:
                process.kill()
                process.join()
    assert list(tmp_path.iterdir()) == []
