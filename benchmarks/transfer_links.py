"""Four ranks on emulated links: what path choice and order make of links of a given speed.

The transfer engine is the real one; only its links are emulated (``emulated_links.py``). Ranks are
threads, compute is a sleep, every byte is moved and compared. Three figures:

- *exposed / compute*: a layer's copies for the next micro-step start when the layer is done with
  this one, and need three quarters of what both paths carry meanwhile. Which share of its compute
  time does a rank wait?
- *time / flow bound*: copies with hot sources, more than there is time for. How long does moving
  them all take, over the least that any division between the paths allows, whatever the order, from
  the homes alone? (Relays may take less.)
- *single / both*: the time of the better single path over that of both, over the ratio of
  capacities.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.emulated_links import (
    EmulatedLink,
    EmulatedNetwork,
    LinkClock,
    LinkedCache,
    sleep_until,
)
from benchmarks.pairing import ratio, turns
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Fill
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.replica import Replica
from foremoe.transfer.schedule.links import Links
from foremoe.transfer.schedule.micro_step import schedule_micro_step
from foremoe.transfer.schedule.timetable import LayerCopies
from foremoe.transfer.slab import SlabLayout

RANKS, LAYERS, EXPERTS, SPARE_SLOTS = 4, 94, 16, 2  # as many layers as Qwen3-235B-A22B
TOPOLOGY = Topology(RANKS, RANKS)
SLAB_BYTES = 2**14
PEER_SLABS = 0.5  # that the peer path carries in the time of one by the host path
NEED = 0.75  # of what both paths carry during a layer's compute: one slab for each rank
LAYOUT = SlabLayout.from_shapes({"weights": (SLAB_BYTES,)}, torch.uint8)
HOME = contiguous_homes(LAYERS, EXPERTS, RANKS)

Wanted = NDArray[np.int32]  # [L, P, R]
Result = TypeVar("Result")


class EmulatedRanks:
    """The engines of a group, each used by a thread of its own."""

    def __init__(self, directory: Path, slab_seconds: float, *, both: bool) -> None:
        """slab_seconds: by the host path. both: with the peer path beside it."""
        speed = PathSpeed(SLAB_BYTES / slab_seconds, PEER_SLABS * SLAB_BYTES / slab_seconds)
        self._layer_seconds = slab_seconds / (1 + PEER_SLABS) / NEED
        self._clock = LinkClock()
        self._caches = linked_caches(directory, self._clock, speed.host)
        network = EmulatedNetwork(self._clock, RANKS, speed.peer)
        shape = (LAYERS, EXPERTS, LAYOUT.nbytes)
        self._weights = torch.randint(0, 255, shape, dtype=torch.uint8)
        self._threads = ThreadPoolExecutor(RANKS)
        self.engines: list[TransferEngine] = self.on_all(
            lambda rank: TransferEngine(
                rank=rank,
                topology=TOPOLOGY,
                layers=range(LAYERS),
                num_experts=EXPERTS,
                layout=LAYOUT,
                spare_slots=SPARE_SLOTS,
                training=False,
                cache=self._caches[rank],
                peer_group=network.groups[rank],
                home_weights=self._weights_of,
                speed=speed if both else PathSpeed(speed.host, 0.0),
            )
        )
        self.forget()

    def on_all(self, function: Callable[[int], Result]) -> list[Result]:
        """``function(rank)`` on all ranks at once; results by rank."""
        return list(self._threads.map(function, range(RANKS)))

    def forget(self) -> None:
        """Void all replicas, so that all that is wanted next must be copied."""
        self.on_all(lambda rank: self.engines[rank].weights_changed())

    def move(self, wanted: Wanted) -> float:
        """Seconds until every replica of every layer is usable, once all copies are issued.

        Issuing is left out, as the ranks take turns with one interpreter here.
        """
        self.forget()
        self._clock.hold()
        issued = threading.Barrier(RANKS, self._clock.start)

        def rank_main(rank: int) -> tuple[float, float]:
            engine = self.engines[rank]
            with engine.together():
                for layer in range(LAYERS):
                    engine.promise(layer, HOME[layer], wanted[layer])
            issued.wait()
            started = time.monotonic()
            replicas = [engine.acquire(layer) for layer in range(LAYERS)]
            ended = time.monotonic()
            for layer in range(LAYERS):
                self._check(layer, replicas[layer])
                engine.release(layer)
            return started, ended

        times = np.array(self.on_all(rank_main))
        return float(times[:, 1].max() - times[:, 0].min())

    def exposed_share(self, micro_steps: Sequence[Wanted]) -> float:
        """Time waited for copies over time computed; the first micro-step is not counted."""
        self.forget()

        def rank_main(rank: int) -> float:
            engine = self.engines[rank]
            with engine.together():
                for layer in range(LAYERS):
                    engine.promise(layer, HOME[layer], micro_steps[0][layer])
            for index, _ in enumerate(micro_steps):
                if index == 1:
                    engine.statistics()
                for layer in range(LAYERS):
                    replicas = engine.acquire(layer)
                    done = time.monotonic() + self._layer_seconds
                    self._check(layer, replicas)
                    sleep_until(done)
                    engine.release(layer)
                    if index + 1 < len(micro_steps):
                        engine.promise(layer, HOME[layer], micro_steps[index + 1][layer])
            return float(engine.statistics().exposed_seconds.sum())

        computed = self._layer_seconds * LAYERS * (len(micro_steps) - 1)
        return max(self.on_all(rank_main)) / computed

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
        self._threads.shutdown()
        for cache in self._caches:
            cache.close()

    def _weights_of(self, layer: int, expert: int) -> dict[str, Tensor]:
        return LAYOUT.views(self._weights[layer, expert])

    def _check(self, layer: int, replicas: Sequence[Replica]) -> None:
        for replica in replicas:
            for name, weights in self._weights_of(layer, replica.expert).items():
                assert torch.equal(replica.weights[name], weights), "the wrong bytes arrived"


def linked_caches(directory: Path, clock: LinkClock, speed: float) -> list[LinkedCache]:
    """Every rank's view of one host cache, over a link of its own."""
    layers = range(LAYERS)
    first = LinkedCache.create(directory, layers, EXPERTS, LAYOUT, RANKS)
    caches = [
        first,
        *(LinkedCache.attach(first.path, layers, EXPERTS, LAYOUT) for _ in range(RANKS - 1)),
    ]
    first.unlink()
    linked = []
    for cache in caches:
        assert isinstance(cache, LinkedCache)
        cache.clock, cache.link = clock, EmulatedLink(speed)
        linked.append(cache)
    return linked


def even(use: int) -> Wanted:
    """In every use each rank needs one other expert a layer, each from another rank."""
    wanted = np.empty((LAYERS, RANKS, SPARE_SLOTS), np.int32)
    for layer, rank, slot in np.ndindex(wanted.shape):
        turn = layer + use - slot  # the other slot keeps the expert of the use before
        source = (rank + 1 + turn % 3) % RANKS
        wanted[layer, rank, slot] = source * (EXPERTS // RANKS) + turn % (EXPERTS // RANKS)
    return wanted


def hot(seed: int) -> Wanted:
    """Random experts; half of a layer's demand goes to the ranks that are hot there."""
    generator = np.random.default_rng(seed)
    wanted = np.empty((LAYERS, RANKS, SPARE_SLOTS), np.int32)
    for layer in range(LAYERS):
        heat = generator.dirichlet(np.full(RANKS, 0.5)).repeat(EXPERTS // RANKS) + 0.1
        for rank in range(RANKS):
            chance = np.where(HOME[layer] == rank, 0, heat)
            wanted[layer, rank] = generator.choice(
                EXPERTS, SPARE_SLOTS, replace=False, p=chance / chance.sum()
            )
    return wanted


def bound_seconds(wanted: Wanted, slab_seconds: float) -> float:
    """No division between the paths, and no order, moves all of this sooner from the homes alone.

    As one layer without deadline, whose schedule is exact.
    """
    fills = [
        Fill(rank, layer * SPARE_SLOTS + slot, int(wanted[layer, rank, slot]))
        for layer, rank, slot in np.ndindex(wanted.shape)
    ]
    slab_ns = round(slab_seconds * 1e9)
    links = Links(TOPOLOGY, slab_ns, round(slab_ns / PEER_SLABS), 0, chunks=1)
    timetable = schedule_micro_step([LayerCopies(0, fills, HOME[0])], links)
    return float(timetable.end_ns.max()) / 1e9


def measure(directory: Path, slab_seconds: float, pairs: int) -> dict[str, Any]:
    """The three figures, in one run; the host cache lies in ``directory``, a tmpfs."""
    bounds, bounded = [], []
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(dir=directory) as folder, ExitStack() as stack:
        ranks = {
            both: EmulatedRanks(Path(folder), slab_seconds, both=both) for both in (True, False)
        }
        for group in ranks.values():
            stack.callback(group.close)
            group.move(even(0))
        for index, both in enumerate(turns(pairs)):
            seconds[both].append(ranks[both].move(even(index // 2)))
            if both:
                wanted = hot(index // 2)
                bounds.append(bound_seconds(wanted, slab_seconds))
                bounded.append(ranks[both].move(wanted))
        exposed = ranks[True].exposed_share([even(use) for use in range(pairs + 1)])
    return {
        "need_of_capacity": NEED,
        "exposed_over_compute": exposed,
        "time_over_flow_bound": asdict(ratio(bounded, bounds)),
        "single_over_both": asdict(ratio(seconds[False], seconds[True])),
        "capacity_ratio": 1 + PEER_SLABS,
    }
