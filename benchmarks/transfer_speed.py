"""The engine beside the plain operation, for the same bytes between two processes.

One thread each. Plain is ``Tensor.copy_`` from the same shared memory for the host path, and
``send``/``recv`` of whole slabs over gloo, all posted at once, for the peer path. 1.0 means that
the engine costs nothing beside the bytes.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.pairing import ratio, turns
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.problem import Topology
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.slab import SlabLayout, aligned_buffer

LAYERS, EXPERTS, SPARE_SLOTS = 8, 8, 2
COPIES = LAYERS * SPARE_SLOTS
HOST_ONLY, PEER_ONLY = PathSpeed(1.0, 0.0), PathSpeed(0.0, 1.0)

Measure = Callable[[int], None]  # one run; the argument tells odd runs from even ones
Figure = dict[str, Any]


class Rank:
    """One of two ranks; rank 0 measures, and rank 1 does its part."""

    def __init__(self, rank: int, expert_bytes: int, directory: Path) -> None:
        self.rank = rank
        half = expert_bytes // 2
        self.layout = SlabLayout.from_shapes({"up": (half,), "down": (half,)}, torch.uint8)
        self.home = contiguous_homes(LAYERS, EXPERTS, 2)
        self.cache = self._open_cache(directory)
        self.raw_group = dist.new_group(backend="gloo")
        self.own = {
            (layer, expert): self._random_expert()
            for layer in range(LAYERS)
            for expert in np.flatnonzero(self.home[layer] == rank).tolist()
        }
        self.slots = [aligned_buffer(self.layout.nbytes) for _ in range(COPIES)]
        for slab in self.slots:
            slab.zero_()

    def engine(self, speed: PathSpeed) -> TransferEngine:
        engine = TransferEngine(
            rank=self.rank,
            topology=Topology(2, 2),
            layers=range(LAYERS),
            num_experts=EXPERTS,
            layout=self.layout,
            spare_slots=SPARE_SLOTS,
            training=False,
            cache=self.cache,
            peer_group=dist.new_group(backend="gloo"),
            home_weights=lambda layer, expert: self.own[layer, expert],
            speed=speed,
        )
        engine.weights_changed()
        return engine

    def move(self, engine: TransferEngine, wanted: NDArray[np.int32]) -> None:
        """All layers' replicas, from the promise to the moment the last one is usable."""
        with engine.together():
            for layer in range(LAYERS):
                engine.promise(layer, self.home[layer], wanted)
        for layer in range(LAYERS):
            engine.acquire(layer)
        for layer in range(LAYERS):
            engine.release(layer)

    def _random_expert(self) -> dict[str, Tensor]:
        return {
            place.name: torch.randint(0, 255, place.shape, dtype=torch.uint8)
            for place in self.layout.places
        }

    def _open_cache(self, directory: Path) -> HostExpertCache:
        path: list[Any] = [None]
        layers = range(LAYERS)
        if self.rank == 0:
            cache = HostExpertCache.create(directory, layers, EXPERTS, self.layout, 2)
            path = [cache.path]
        dist.broadcast_object_list(path)
        if self.rank == 1:
            cache = HostExpertCache.attach(path[0], layers, EXPERTS, self.layout)
        dist.barrier()
        cache.unlink()
        return cache


def wanted(run: int, *, both_ways: bool) -> NDArray[np.int32]:
    """Other experts in even and odd runs, so that no run finds its replicas in place."""
    shift = 2 * (run % 2)
    replicas = np.array([[4 + shift, 5 + shift], [0 + shift, 1 + shift]], np.int32)
    if not both_ways:
        replicas[1] = -1
    return replicas


def host_path(rank: Rank, pairs: int) -> Figure | None:
    engine = rank.engine(HOST_ONLY)

    def plain(run: int) -> None:
        if rank.rank == 0:
            slabs = [
                rank.cache.slab(layer, expert)
                for layer in range(LAYERS)
                for expert in wanted(run, both_ways=False)[0].tolist()
            ]
            for slot, slab in zip(rank.slots, slabs, strict=True):
                slot.copy_(slab)

    figure = paired(
        rank,
        "host path / copy_",
        lambda run: rank.move(engine, wanted(run, both_ways=False)),
        plain,
        pairs,
    )
    engine.close()
    return figure


def peer_path(rank: Rank, pairs: int, *, both_ways: bool) -> Figure | None:
    engine = rank.engine(PEER_ONLY)
    source = [torch.randint(0, 255, (rank.layout.nbytes,), dtype=torch.uint8) for _ in rank.slots]

    def plain(_: int) -> None:
        works = []
        for index, (slot, slab) in enumerate(zip(rank.slots, source, strict=True)):
            if both_ways or rank.rank == 0:
                works.append(rank.raw_group.recv([slot], 1 - rank.rank, index))
            if both_ways or rank.rank == 1:
                works.append(rank.raw_group.send([slab], 1 - rank.rank, index))
        for work in works:
            work.wait()

    figure = paired(
        rank,
        f"peer path / gloo send-recv, {'both ways' if both_ways else 'one way'}",
        lambda run: rank.move(engine, wanted(run, both_ways=both_ways)),
        plain,
        pairs,
    )
    engine.close()
    return figure


def paired(rank: Rank, name: str, engine: Measure, plain: Measure, pairs: int) -> Figure | None:
    """Run both in turns after a warm-up; the figure on rank 0."""
    runs = {True: 0, False: 0}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for index, by_engine in enumerate(turns(pairs + 1)):
        dist.barrier()
        started = time.perf_counter()
        (engine if by_engine else plain)(runs[by_engine])
        dist.barrier()
        runs[by_engine] += 1
        if index >= 2:
            seconds[by_engine].append(time.perf_counter() - started)
    if rank.rank != 0:
        return None
    moved = COPIES * rank.layout.payload_bytes
    return {
        "name": name,
        "bytes_a_run": moved,
        "plain_over_engine": asdict(ratio(seconds[False], seconds[True])),
        "engine_gigabytes_per_second": moved / float(np.median(seconds[True])) / 1e9,
        "plain_gigabytes_per_second": moved / float(np.median(seconds[False])) / 1e9,
    }


def run_rank(
    rank: int, folder: str, directory: Path, expert_mib: float, pairs: int, answer: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    state = Rank(rank, int(expert_mib * 2**20), directory)
    figures = [
        host_path(state, pairs),
        peer_path(state, pairs, both_ways=False),
        peer_path(state, pairs, both_ways=True),
    ]
    if rank == 0:
        answer.send(figures)
    dist.destroy_process_group()


def measure(directory: Path, expert_mib: float, pairs: int) -> list[Figure]:
    """Both paths, each over ``pairs`` pairs; the host cache lies in ``directory``."""
    context = multiprocessing.get_context("spawn")
    receiver, answer = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(
                target=run_rank, args=(rank, folder, directory, expert_mib, pairs, answer)
            )
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        answer.close()
        try:
            figures: list[Figure] = receiver.recv()
        finally:
            for process in ranks:
                process.join(timeout=30)
                process.kill()
    return figures
