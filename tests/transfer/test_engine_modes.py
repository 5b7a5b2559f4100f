"""Own slots or shared ones: gradients add up in place, each comes home once, memory is bound."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.errors import NotReadyError
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.slots import slot_bytes
from foremoe.transfer.statistics import TransferStatistics
from tests.processes import run_ranks
from tests.transfer.toy_group import LAYERS, ToyRank, layout, random_replicas

SPARE_SLOTS, MINI_BATCHES, MICRO_STEPS = 2, 3, 5
Wanted = NDArray[np.int32]
Replica = tuple[int, int, int]  # layer, expert, rank


def limit_bytes(frames: int) -> int:
    """What slots for ``frames`` layers take, and the gradients of one of them."""
    slab = layout()
    return SPARE_SLOTS * (frames * slot_bytes(slab, True) + slab.gradient_layout().nbytes)


class Accumulation:
    """Uses in a random order of layers, whose gradients are only sent home now and then."""

    def __init__(self, toy: ToyRank, seed: int) -> None:
        self.toy = toy
        self.rng = np.random.default_rng(seed)
        self.owed: dict[Replica, float] = defaultdict(float)  # of the whole group
        self.home: dict[Replica, float] = defaultdict(float)  # to experts of this rank
        self.value = 0.0

    def run(self) -> int:
        """Returns how many gradients came home in all."""
        arrived = 0
        for _ in range(MINI_BATCHES):
            self.toy.step_optimizer()
            for _ in range(MICRO_STEPS):
                self.use(self.rng.permutation(LAYERS).tolist())
            self.toy.engine.return_gradients()
            returned = self.toy.collect_gradients()
            arrived += len(returned)
            for item in returned:
                for gradient in item.gradients.values():
                    assert (gradient == gradient.view(-1)[0]).all()
                total = float(item.gradients["down"].view(-1)[0])
                self.home[item.layer, item.expert, item.rank] += total
            assert {k: v for k, v in self.home.items() if v} == {
                key: total
                for key, total in self.owed.items()
                if self.toy.home_of(key[0])[key[1]] == self.toy.rank
            }
            self.owed.clear()
            self.home.clear()
        return arrived

    def use(self, layers: Sequence[int]) -> None:
        """As many layers at once as there are slots for, in the order given."""
        frames = self.toy.engine.frames
        for start in range(0, len(layers), frames):
            group = layers[start : start + frames]
            plans = {layer: self.draw(layer) for layer in group}
            for layer in group:
                assert self.toy.engine.can_promise(layer)
                home = self.toy.home_of(layer)
                self.toy.engine.promise(layer, home, *plans[layer])
                assert not self.toy.engine.can_promise(layer)
            for layer in reversed(group):
                self.add(layer, *plans[layer])

    def draw(self, layer: int) -> tuple[Wanted, NDArray[np.bool_]]:
        ranks = self.toy.ranks
        wanted = random_replicas(self.rng, self.toy.home_of(layer), ranks, SPARE_SLOTS)
        return wanted, self.rng.random(wanted.shape) < 0.7

    def add(self, layer: int, wanted: Wanted, serving: NDArray[np.bool_]) -> None:
        """Add a number to every gradient; idle replicas have none, and may not be there at all."""
        held = {replica.expert: replica for replica in self.toy.engine.acquire(layer)}
        for rank, slot in np.argwhere(wanted >= 0).tolist():
            expert = int(wanted[rank, slot])
            self.value += 1.0
            if serving[rank, slot]:
                self.owed[layer, expert, rank] += self.value
            if rank != self.toy.rank:
                continue
            assert not serving[rank, slot] or expert in held
            gradients = held[expert].gradients if expert in held else None
            assert (gradients is not None) == bool(serving[rank, slot])
            for gradient in (gradients or {}).values():
                gradient += self.value
        self.toy.engine.release(layer)


def _accumulate(rank: int, ranks: int, directory: Path, frames: int) -> tuple[int, int]:
    toy = ToyRank(
        rank,
        ranks,
        directory,
        limit_bytes=limit_bytes(frames),
        speed=PathSpeed(2.0, 1.0),
        checksums=True,
    )
    assert toy.engine.frames == frames
    assert toy.engine.resident == (frames == len(LAYERS))
    arrived = Accumulation(toy, 5).run()
    assert toy.engine._pool.nbytes == frames * SPARE_SLOTS * slot_bytes(layout(), True)
    buffers = len(toy.engine._returns.ends.inbox._free)
    toy.close()
    return arrived, buffers


@pytest.mark.parametrize(("ranks", "frames"), [(2, 3), (2, 2), (4, 3)])
def test_what_replicas_add_up_comes_home_once(ranks: int, frames: int, tmp_path: Path) -> None:
    results = run_ranks(_accumulate, ranks, ranks, tmp_path, frames)
    assert sum(arrived for arrived, _ in results) > 20 * ranks
    assert all(0 < buffers <= SPARE_SLOTS for _, buffers in results), "the byte limit holds"


def _stay(rank: int, directory: Path) -> list[TransferStatistics]:
    toy = ToyRank(rank, 2, directory)
    wanted = np.array([[4, 5], [0, 1]], np.int32)
    idle = np.array([[True, False], [True, True]])
    toy.step_optimizer()
    seen = []
    for serving in (None, idle, idle):
        toy.engine.promise(3, toy.home_of(3), wanted, serving)
        for replica in toy.engine.acquire(3):
            for gradient in (replica.gradients or {}).values():
                gradient += 1.0
        toy.engine.release(3)
        toy.engine.collect_gradients()
        seen.append(toy.engine.statistics())
    toy.engine.return_gradients(3)
    values = [float(one.gradients["down"].max()) for one in toy.collect_gradients()]
    assert values == ([3.0, 3.0] if rank == 0 else [3.0, 1.0])
    seen.append(toy.engine.statistics())
    toy.engine.promise(3, toy.home_of(3), wanted, np.zeros((2, 2), np.bool_))
    assert toy.engine.placement(3).tolist() == wanted.tolist(), "what is there stays"
    toy.engine.abandon()
    toy.step_optimizer()
    toy.engine.promise(3, toy.home_of(3), wanted, idle)
    assert toy.engine.placement(3)[0, 1] == -1, "what serves nothing is not fetched"
    toy.engine.abandon()
    toy.close()
    return seen


def test_residents_return_their_gradients_only_at_the_end(tmp_path: Path) -> None:
    slab = layout().gradient_layout().nbytes
    for *during, after in run_ranks(_stay, 2, tmp_path):
        assert [one.gradient_bytes for one in during] == [0, 0, 0]
        assert [sum(one.copies.values()) for one in during] == [2, 0, 0]
        assert after.gradient_bytes == 2 * slab


def _shared(rank: int, directory: Path) -> list[str]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("foremoe.transfer")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    toy = ToyRank(rank, 2, directory, limit_bytes=limit_bytes(2))
    wanted = np.array([[4, 5], [0, 1]], np.int32)
    toy.step_optimizer()
    toy.promise(3, wanted)
    toy.promise(5, wanted)
    assert not toy.engine.can_promise(9)
    with pytest.raises(NotReadyError, match=r"all slots are promised to layers \[3, 5\]"):
        toy.promise(9, wanted)
    replica = toy.acquire_checked(3, wanted, with_gradients=False)[0]
    toy.engine.release(3)
    toy.promise(9, wanted)
    toy.acquire_checked(9, wanted, with_gradients=False)
    toy.acquire_checked(5, wanted, with_gradients=False)
    toy.engine.release(5)
    toy.promise(3, wanted)
    again = toy.acquire_checked(3, wanted, with_gradients=False)[0]
    again.check_held(replica.content)
    assert toy.engine.statistics().kept == 0, "it was fetched again"
    for layer in (3, 9):
        toy.engine.release(layer)
    toy.close()
    return messages


def test_layers_take_turns_in_shared_slots(tmp_path: Path) -> None:
    messages, silent = run_ranks(_shared, 2, tmp_path)
    assert len(messages) == 1
    assert "replicas are streaming: 3 layers share the slots of 2, which take" in messages[0]
    assert silent == []
