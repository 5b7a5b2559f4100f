"""Two processes on one GPU: each brings in the other's experts, by the peer path an engine finds.

One device has no link to measure, so this is a check of the protocol (handles, events, generations,
bytes), beside a plain copy of the same bytes on the device.
"""

import multiprocessing
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.problem import Topology
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.slab import SlabLayout

LAYERS, EXPERTS, SPARE_SLOTS, GENERATIONS = 8, 8, 2, 6
ANSWER_SECONDS = 240.0


class Rank:
    """One of two ranks; an expert's bytes follow from its layer, number and generation."""

    def __init__(self, rank: int, expert_bytes: int, device: torch.device) -> None:
        self.rank, self.device, self.generation = rank, device, 0
        layout = SlabLayout.from_shapes({"bytes": (expert_bytes,)}, torch.uint8)
        self.home = contiguous_homes(LAYERS, EXPERTS, 2)
        self.weights = {
            (layer, expert): torch.empty(expert_bytes, dtype=torch.uint8, device=device)
            for layer in range(LAYERS)
            for expert in np.flatnonzero(self.home[layer] == rank).tolist()
        }
        self.engine = TransferEngine(
            rank=rank,
            topology=Topology(2, 2),
            layers=range(LAYERS),
            num_experts=EXPERTS,
            layout=layout,
            spare_slots=SPARE_SLOTS,
            training=False,
            cache=None,
            peer_group=dist.new_group(backend="gloo"),
            home_weights=lambda layer, expert: {"bytes": self.weights[layer, expert]},
            speed=PathSpeed(0.0, 1.0),
            device=device,
        )

    def step(self) -> None:
        """New weights, as an optimizer would write them."""
        self.generation += 1
        for (layer, expert), weights in self.weights.items():
            weights.fill_(self._value(layer, expert))
        self.engine.weights_changed()

    def move(self) -> tuple[int, float]:
        """Bring the other rank's experts in and compare them; wrong bytes, and seconds it took."""
        wanted = np.array([[4, 5], [0, 1]], np.int32) + 2 * (self.generation % 2)
        self._finish()
        began = time.perf_counter()
        with self.engine.together():
            for layer in range(LAYERS):
                self.engine.promise(layer, self.home[layer], wanted)
        replicas = [(layer, one) for layer in range(LAYERS) for one in self.engine.acquire(layer)]
        self._finish()
        seconds = time.perf_counter() - began
        differing = [
            (one.weights["bytes"] != self._value(layer, one.expert)).sum()
            for layer, one in replicas
        ]
        assert len(replicas) == LAYERS * SPARE_SLOTS, "replicas are missing"
        for layer in range(LAYERS):
            self.engine.release(layer)
        return int(torch.stack(differing).sum().item()), seconds

    def _value(self, layer: int, expert: int) -> int:
        return (31 * self.generation + 8 * layer + expert) % 251

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def plain_seconds(source: Tensor, copies: int) -> float:
    """``copies`` copies of ``source`` on its device."""
    into = torch.empty_like(source)
    for measured in (False, True):
        if source.device.type == "cuda":
            torch.cuda.synchronize(source.device)
        began = time.perf_counter()
        for _ in range(copies if measured else 1):
            into.copy_(source)
    if source.device.type == "cuda":
        torch.cuda.synchronize(source.device)
    return time.perf_counter() - began


def run_rank(rank: int, folder: str, expert_bytes: int, device: torch.device, answer: Any) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    own = Rank(rank, expert_bytes, device)
    wrong, seconds = 0, []
    for _ in range(GENERATIONS):
        own.step()
        found, took = own.move()
        wrong += found
        seconds.append(took)
        dist.barrier()
    moved = LAYERS * SPARE_SLOTS * expert_bytes
    plain = plain_seconds(next(iter(own.weights.values())), LAYERS * SPARE_SLOTS)
    answer.send(
        {
            "rank": rank,
            "transport": type(own.engine._peer).__name__,
            "wrong_bytes": wrong,
            "gigabytes_per_second": moved / min(seconds) / 1e9,
            "plain_gigabytes_per_second": moved / plain / 1e9,
        }
    )
    own.engine.close()
    dist.barrier()
    dist.destroy_process_group()


def measure(device: torch.device, expert_bytes: int) -> list[dict[str, Any]]:
    """What each rank found. Raises RuntimeError when one does not answer in time."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(
                target=run_rank, args=(rank, str(Path(folder)), expert_bytes, device, answer)
            )
            for rank, (_, answer) in enumerate(pipes)
        ]
        for process in ranks:
            process.start()
        try:
            for receiver, answer in pipes:
                answer.close()
                if not receiver.poll(ANSWER_SECONDS):
                    raise RuntimeError(f"a rank did not answer within {ANSWER_SECONDS} s")
            return [receiver.recv() for receiver, _ in pipes]
        finally:
            for process in ranks:
                process.join(timeout=10)
                process.kill()
