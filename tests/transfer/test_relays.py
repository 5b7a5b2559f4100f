"""Replicas that have come are copied on: from slots, over gloo and in groups as on CUDA."""

import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy
from foremoe.transfer.paths import PathSpeed
from tests.processes import run_ranks
from tests.transfer.stand_in import transports_of_cuda
from tests.transfer.toy_group import LAYERS, ToyRank, random_replicas

LAYER = LAYERS[0]
TWO_NODES = Topology(4, 2)
SLOW_NETWORK = PathSpeed(host=4.0, peer=4.0, network=1.0)


def watch_copies(toy: ToyRank) -> list[Copy]:
    """What the engine will have decided to copy, on all ranks alike."""
    decided: list[Copy] = []
    choose = toy.engine._paths.choose

    def watched(*arguments: object) -> object:
        timetable = choose(*arguments)  # type: ignore[arg-type]
        decided.extend(timetable.copies)
        return timetable

    toy.engine._paths.choose = watched  # type: ignore[method-assign, assignment]
    return decided


def _hot_experts(rank: int, ranks: int, grouped: bool) -> tuple[int, int]:
    with transports_of_cuda() if grouped else nullcontext():
        toy = ToyRank(rank, ranks, None, checksums=True, training=False)
    decided, rng = watch_copies(toy), np.random.default_rng(1)
    for _ in range(3):
        toy.step_optimizer()
        for _ in range(4):
            wanted = {layer: random_replicas(rng, toy.home_of(layer), ranks, 2) for layer in LAYERS}
            for layer, replicas in wanted.items():
                hot = int(rng.integers(toy.experts))
                for other in np.flatnonzero(np.arange(ranks) != toy.home_of(layer)[hot]):
                    if hot not in replicas[other]:
                        replicas[other, 0] = hot
            with toy.engine.together():
                for layer, replicas in wanted.items():
                    toy.promise(layer, replicas)
            for layer, replicas in wanted.items():
                toy.acquire_checked(layer, replicas, with_gradients=False)
                toy.engine.release(layer)
    toy.close()
    return len(decided), sum(copy.relay is not None for copy in decided)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_byte_of_a_relayed_replica_is_its_homes(grouped: bool) -> None:
    counts = run_ranks(_hot_experts, 4, 4, grouped)
    assert counts == counts[:1] * 4
    copied, relayed = counts[0]
    assert copied > relayed > 10


def _late_receiver(rank: int, directory: Path) -> float:
    """Rank 2 is to send expert 0 on to rank 3, and to read expert 7 into the same slot."""
    toy = ToyRank(
        rank, 4, directory, spare_slots=1, training=False, topology=TWO_NODES, speed=SLOW_NETWORK
    )
    toy.step_optimizer()
    decided = watch_copies(toy)
    dist.barrier()
    if rank == 3:
        time.sleep(0.5)
    waited = 0.0
    for wanted in ([-1, -1, 0, 0], [-1, -1, 7, -1]):
        replicas = np.array(wanted, np.int32)[:, None]
        toy.promise(LAYER, replicas)
        started = time.monotonic()
        toy.acquire_checked(LAYER, replicas, with_gradients=False)
        waited = time.monotonic() - started
        toy.engine.release(LAYER)
    first, second, third = decided
    assert (first.source, first.destination, first.relay) == (0, 2, None)
    assert (second.source, second.destination, second.home) == (2, 3, 0)
    assert (third.path, third.destination) == ("host", 2)
    dist.barrier()
    toy.close()
    return waited


def test_a_slot_is_not_overwritten_before_it_was_sent_on(tmp_path: Path) -> None:
    waited = run_ranks(_late_receiver, 4, tmp_path)
    assert waited[2] > 0.2, "the reader of the slot has not waited for who was to get it"
