"""Memory of a group of two ranks: as configured, not leaking, and gone after kill -9.

The ranks train: in every micro-step replicas come in and add to their gradients, every tenth sends
them home, every hundredth changes the weights.
"""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.problem import Topology
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.gradients import ReturnedGradient
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import slot_bytes

RANKS, LAYERS, EXPERTS, SPARE_SLOTS = 2, 4, 8, 2
LAYOUT = SlabLayout.from_shapes({"up": (64, 256), "down": (256, 64)}, torch.bfloat16)
HOME = contiguous_homes(LAYERS, EXPERTS, RANKS)
SLOT_BYTES = LAYERS * SPARE_SLOTS * slot_bytes(LAYOUT, training=True)
WARM_UP = 600  # micro-steps, by when the caches of NumPy and of the allocator are full

_context = multiprocessing.get_context("spawn")


def measure(directory: Path, micro_steps: int) -> dict[str, Any]:
    """directory: a tmpfs; works in a folder of its own there."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        caches = Path(name)
        worked = _run(_work, caches, micro_steps)
        _run(_die_while_working, caches)
        left_while_working = _names(caches)
        _run(_die_before_unlink, caches)
        left_before_unlink = _names(caches)
        _run(_work, caches, 1)
        return {
            "slot_bytes_limit": SLOT_BYTES,
            "cache_bytes_configured": LAYERS * EXPERTS * LAYOUT.nbytes,
            "cache_bytes_taken": worked[0][0],
            "micro_steps": micro_steps,
            "bytes_grown": max(grown for _, grown in worked),
            "files_after_kill": left_while_working,
            "files_after_kill_before_unlink": left_before_unlink,
            "files_after_restart": _names(caches),
        }


class _Rank:
    def __init__(self, rank: int, caches: Path) -> None:
        torch.set_num_threads(1)
        self.rank = rank
        generator = torch.Generator().manual_seed(rank)
        self.weights = {
            place.name: torch.randn(place.shape, generator=generator).to(LAYOUT.dtype)
            for place in LAYOUT.places
        }
        path: list[Any] = [None]
        if rank == 0:
            self.cache = HostExpertCache.create(caches, range(LAYERS), EXPERTS, LAYOUT, RANKS)
            path = [self.cache.path]
        dist.broadcast_object_list(path)
        if rank > 0:
            self.cache = HostExpertCache.attach(path[0], range(LAYERS), EXPERTS, LAYOUT)
        self.cache_bytes = os.stat(path[0]).st_blocks * 512
        dist.barrier()

    def start(self) -> None:
        self.cache.unlink()
        self.engine = TransferEngine(
            rank=self.rank,
            topology=Topology(RANKS, RANKS),
            layers=range(LAYERS),
            num_experts=EXPERTS,
            layout=LAYOUT,
            spare_slots=SPARE_SLOTS,
            training=True,
            cache=self.cache,
            peer_group=dist.new_group(backend="gloo"),
            home_weights=lambda *_: self.weights,
            add_gradients=_take,
            # What slots need, and room for one layer's gradients on their way.
            limit_bytes=SLOT_BYTES + SPARE_SLOTS * LAYOUT.gradient_layout().nbytes,
        )
        assert self.engine.resident, "the configured bytes must suffice for all layers' slots"
        self.engine.weights_changed()

    def micro_step(self, index: int) -> None:
        wanted = np.array([[4, 5], [0, 1]], np.int32) + 2 * (index % 2)
        for layer in range(LAYERS):
            self.engine.promise(layer, HOME[layer], wanted.astype(np.int32))
        for layer in range(LAYERS):
            for replica in self.engine.acquire(layer):
                for gradient in (replica.gradients or {}).values():
                    gradient.add_(1.0)
            self.engine.release(layer)
        if index % 10 == 9:
            self.engine.return_gradients()
            self.engine.collect_gradients()
        if index % 100 == 99:
            self.engine.weights_changed()


def _take(returned: Sequence[ReturnedGradient]) -> None:
    assert all(gradient.gradients for gradient in returned)


def _work(rank: int, caches: Path, micro_steps: int) -> tuple[int, int]:
    """Bytes of the cache's file, and by how much the process has grown since its warm-up."""
    own = _Rank(rank, caches)
    own.start()
    for index in range(WARM_UP):
        own.micro_step(index)
    before = _private_bytes()
    for index in range(micro_steps):
        own.micro_step(index)
    own.engine.return_gradients()
    own.engine.collect_gradients()
    grown = _private_bytes() - before
    dist.barrier()
    own.engine.close()
    own.cache.close()
    return own.cache_bytes, grown


def _die_while_working(rank: int, caches: Path) -> None:
    own = _Rank(rank, caches)
    own.start()
    for index in range(5):
        own.micro_step(index)
    os.kill(os.getpid(), signal.SIGKILL)


def _die_before_unlink(rank: int, caches: Path) -> None:
    _Rank(rank, caches)
    os.kill(os.getpid(), signal.SIGKILL)


def _private_bytes() -> int:
    """Memory of this process alone, without what it shares."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/self/status has no RssAnon")


def _names(caches: Path) -> int:
    return len(list(caches.iterdir()))


def _run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(rank, *arguments)`` in a process for each rank; None for those killed."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_context.Pipe(duplex=False) for _ in range(RANKS)]
        processes = [
            _context.Process(target=_main, args=(rank, folder, pipe[1], function, arguments))
            for rank, pipe in enumerate(pipes)
        ]
        for process, pipe in zip(processes, pipes, strict=True):
            process.start()
            pipe[1].close()
        results = []
        for process, (receiver, _) in zip(processes, pipes, strict=True):
            try:
                results.append(receiver.recv())
            except EOFError:
                results.append(None)
            process.join()
    return results


def _main(
    rank: int, folder: str, answer: Any, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    answer.send(function(rank, *arguments))
    dist.destroy_process_group()
