"""Real rank processes for tests: a fork server that has all loaded makes them start fast."""

import multiprocessing
import pickle
import queue
import signal
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["foremoe.demo.rank_main"])  # imports most of what ranks do


def run_ranks(
    function: Callable[..., Any],
    ranks: int,
    *arguments: Any,
    timeout_seconds: float = 100,
    killed: frozenset[int] = frozenset(),
    prepare: Callable[[int], None] | None = None,
) -> list[Any]:
    """Run ``function(rank, *arguments)`` on ``ranks`` processes joined by gloo; results by rank.

    ``function`` lives in an importable module (not in a test file's local scope). A failure on any
    rank ends the others and raises AssertionError with that rank's traceback. killed: ranks that
    kill themselves with SIGKILL; their result is None. prepare: called with the rank, first of all.
    """
    with tempfile.TemporaryDirectory() as folder:
        results: Any = _context.Queue()
        processes = [
            _context.Process(
                target=_rank_main,
                args=(rank, ranks, folder, results, function, arguments, not killed, prepare),
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        outcome: dict[int, Any] = {}
        try:
            for _ in range(ranks - len(killed)):
                rank, error, value = results.get(timeout=timeout_seconds)
                assert error is None, f"rank {rank} failed:\n{error}"
                outcome[rank] = pickle.loads(value)
            for process in processes:
                process.join(timeout=10)
            for rank in killed:
                assert processes[rank].exitcode == -signal.SIGKILL
        except queue.Empty:
            missing = sorted(set(range(ranks)) - set(outcome) - killed)
            raise AssertionError(f"ranks {missing} did not finish in {timeout_seconds} s") from None
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [outcome.get(rank) for rank in range(ranks)]


def _rank_main(
    rank: int,
    ranks: int,
    folder: str,
    results: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    all_survive: bool,
    prepare: Callable[[int], None] | None,
) -> None:
    if prepare is not None:
        prepare(rank)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{Path(folder) / 'rendezvous'}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=60),
        )
        value = function(rank, *arguments)
        if all_survive:
            dist.barrier()
        # By value: a queue would send tensors as handles that die with this process.
        results.put((rank, None, pickle.dumps(value)))
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - the parent raises it
        results.put((rank, traceback.format_exc(), None))
