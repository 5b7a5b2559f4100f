"""An EP group of tiny experts whose every byte follows from (generation, layer, expert)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.problem import Topology
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.gradients import ReturnedGradient
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.schedule.micro_step import warm_up
from foremoe.transfer.slab import SlabLayout

LAYERS = (3, 5, 9)
EXPERTS = 8
SHAPES = {"gate_up": (6, 5), "down": (5, 3)}


def layout(dtype: torch.dtype = torch.bfloat16) -> SlabLayout:
    return SlabLayout.from_shapes(SHAPES, dtype)


def true_weights(
    generation: int,
    layer: int,
    expert: int,
    slab: SlabLayout,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Small integers, exact in every dtype, that differ between experts and generations."""
    seed = generation * 10_000 + layer * 100 + expert
    generator = torch.Generator().manual_seed(seed)
    return {
        place.name: torch.randint(-128, 128, place.shape, generator=generator).to(
            device, slab.dtype
        )
        for place in slab.places
    }


class ToyRank:
    """One rank: its own experts' parameters, the node's cache and an engine."""

    def __init__(
        self,
        rank: int,
        ranks: int,
        directory: Path | None,
        *,
        peer: bool = True,
        spare_slots: int = 2,
        dtype: torch.dtype = torch.bfloat16,
        experts: int = EXPERTS,
        **options: Any,
    ) -> None:
        warm_up()  # before the ranks meet, so that short waits do not include it
        self.rank, self.ranks = rank, ranks
        self.layout = layout(dtype)
        self.experts = experts
        self.home = contiguous_homes(len(LAYERS), experts, ranks)
        self.generation = 0
        self.device: torch.device | None = options.get("device")
        self.topology = options.pop("topology", Topology(ranks, ranks))
        self.cache = None if directory is None else self._open_cache(directory)
        self.group = dist.new_group(backend="gloo") if peer else None
        self.parameters: dict[tuple[int, int], dict[str, Tensor]] = {}
        self.returned: list[ReturnedGradient] = []
        self._step_parameters(1)
        options.setdefault("training", peer)
        options.setdefault("wait_seconds", 20.0)
        self.engine = TransferEngine(
            rank,
            self.topology,
            LAYERS,
            experts,
            self.layout,
            spare_slots,
            cache=self.cache,
            peer_group=self.group,
            home_weights=lambda layer, expert: self.parameters[layer, expert],
            add_gradients=self._take_gradients,
            **options,
        )

    def step_optimizer(self) -> None:
        """Give own experts their next weights and tell the engine."""
        self._step_parameters(self.generation + 1)
        self.engine.weights_changed()
        self.generation += 1

    def move_homes(self, home: NDArray[np.int32]) -> None:
        """Let experts live elsewhere from the next generation on."""
        self.home = home
        self._step_parameters(self.generation + 1)
        self.engine.weights_changed(home)
        self.generation += 1

    def home_of(self, layer: int) -> NDArray[np.int32]:
        row: NDArray[np.int32] = self.home[LAYERS.index(layer)]
        return row

    def promise(self, layer: int, wanted: NDArray[np.int32]) -> None:
        self.engine.promise(layer, self.home_of(layer), wanted)

    def return_gradients(self, layer: int) -> None:
        """End the layer's use and send its gradients home."""
        self.engine.release(layer)
        self.engine.return_gradients(layer)

    def collect_gradients(self) -> list[ReturnedGradient]:
        """What came home since the last call."""
        self.engine.collect_gradients()
        taken, self.returned = self.returned, []
        return taken

    def acquire_checked(
        self,
        layer: int,
        wanted: NDArray[np.int32],
        with_gradients: bool = True,
        fresh: bool = True,
    ) -> list[Any]:
        """Acquire and compare every byte with what the plan wanted here.

        fresh: gradients must start at zero, as no earlier ones are owed.
        """
        replicas = self.engine.acquire(layer, with_gradients)
        expected = sorted(e for e in wanted[self.rank].tolist() if e >= 0)
        assert sorted(replica.expert for replica in replicas) == expected
        for replica in replicas:
            truth = true_weights(self.generation, layer, replica.expert, self.layout)
            assert replica.weights.keys() == truth.keys()
            for name, tensor in truth.items():
                held = replica.weights[name].cpu()
                assert torch.equal(held, tensor), (layer, replica.expert, name)
            for gradient in (replica.gradients or {}).values() if fresh else ():
                assert not gradient.any(), "gradients must start at zero"
        return replicas

    def close(self) -> None:
        self.engine.close()
        if self.cache is not None:
            self.cache.close()

    def _take_gradients(self, returned: Sequence[ReturnedGradient]) -> None:
        self.returned += [
            replace(one, gradients={name: g.clone() for name, g in one.gradients.items()})
            for one in returned
        ]

    def _step_parameters(self, generation: int) -> None:
        self.parameters.clear()
        for row, layer in enumerate(LAYERS):
            for expert in np.flatnonzero(self.home[row] == self.rank).tolist():
                self.parameters[layer, expert] = true_weights(
                    generation, layer, expert, self.layout, self.device
                )

    def _open_cache(self, directory: Path) -> HostExpertCache:
        per_node = self.topology.ranks_per_node
        capacity = self.experts // self.topology.nodes
        leader = self.rank % per_node == 0
        cache = None
        if leader:
            cache = HostExpertCache.create(directory, LAYERS, capacity, self.layout, per_node)
        paths: list[Any] = [None] * self.ranks
        dist.all_gather_object(paths, str(cache.path) if cache else None)
        if cache is None:
            path = paths[self.rank - self.rank % per_node]
            cache = HostExpertCache.attach(path, LAYERS, capacity, self.layout)
        dist.barrier()
        if leader:
            cache.unlink()
        return cache


def random_replicas(
    rng: np.random.Generator, home: NDArray[np.int32], ranks: int, spare_slots: int
) -> NDArray[np.int32]:
    """int32 ``[P, R]``: experts from other ranks, some slots left empty."""
    wanted = np.full((ranks, spare_slots), -1, np.int32)
    for rank in range(ranks):
        foreign = np.flatnonzero(home != rank)
        chosen = rng.choice(foreign, size=min(spare_slots, foreign.size), replace=False)
        wanted[rank, : chosen.size] = np.where(rng.random(chosen.size) < 0.75, chosen, -1)
        rng.shuffle(wanted[rank])
    return wanted
