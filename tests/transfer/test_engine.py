"""The engine over real processes, gloo and shared memory: every byte and every sum is checked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foremoe.planner.problem import Topology
from foremoe.transfer.paths import PathSpeed
from tests.processes import run_ranks
from tests.transfer.toy_group import LAYERS, ToyRank, random_replicas

Wanted = dict[int, NDArray[np.int32]]  # by layer, [P, R]

MINI_BATCHES, MICRO_STEPS, SPARE_SLOTS = 3, 4, 2


@dataclass(frozen=True)
class Setting:
    topology: Topology
    dtype: torch.dtype
    cache: bool
    speed: PathSpeed


SETTINGS = [
    Setting(Topology(2, 2), torch.bfloat16, True, PathSpeed(2.0, 1.0)),
    Setting(Topology(2, 2), torch.float32, False, PathSpeed()),
    Setting(Topology(4, 4), torch.float64, True, PathSpeed(1.0, 3.0)),
    Setting(Topology(4, 2), torch.bfloat16, True, PathSpeed(5.0, 1.0)),
]


class Training:
    """Random plans, run with the next micro-step's copies under way, as a training loop does."""

    def __init__(self, toy: ToyRank, seed: int) -> None:
        self.toy = toy
        self.rng = np.random.default_rng(seed)
        self.micro_step = 0
        self.checked_gradients = 0

    def run(self) -> int:
        for _ in range(MINI_BATCHES):
            self.toy.step_optimizer()
            self.recompute([self.draw() for _ in range(MICRO_STEPS)])
            self.change_of_mind()
            self.update([self.draw() for _ in range(MICRO_STEPS)])
        return self.checked_gradients

    def draw(self) -> Wanted:
        ranks = self.toy.ranks
        return {
            layer: random_replicas(self.rng, self.toy.home_of(layer), ranks, SPARE_SLOTS)
            for layer in LAYERS
        }

    def promise_all(self, plan: Wanted) -> None:
        for layer in LAYERS:
            self.toy.promise(layer, plan[layer])

    def recompute(self, plans: list[Wanted]) -> None:
        self.promise_all(plans[0])
        for plan, upcoming in zip(plans, [*plans[1:], None], strict=True):
            for layer in LAYERS:
                self.toy.acquire_checked(layer, plan[layer], with_gradients=False)
                self.toy.engine.release(layer)
                if upcoming is not None:
                    self.toy.promise(layer, upcoming[layer])

    def change_of_mind(self) -> None:
        """Promises that the group drops before it uses them."""
        self.promise_all(self.draw())
        self.toy.engine.abandon()

    def update(self, plans: list[Wanted]) -> None:
        self.promise_all(plans[0])
        for plan, upcoming in zip(plans, [*plans[1:], None], strict=True):
            self.micro_step += 1
            held = {layer: self.toy.acquire_checked(layer, plan[layer]) for layer in LAYERS}
            for layer in reversed(LAYERS):
                for replica in held[layer]:
                    replica.check_held(replica.content)
                    for gradient in replica.gradients.values():
                        gradient += self.gradient_value(layer, replica.expert, self.toy.rank)
                self.toy.return_gradients(layer)
                if upcoming is not None:
                    self.toy.promise(layer, upcoming[layer])
            self.check_returned(plan)

    def gradient_value(self, layer: int, expert: int, rank: int) -> float:
        return float(1 + rank + 10 * expert + 100 * layer + 1000 * self.micro_step)

    def check_returned(self, plan: Wanted) -> None:
        expected = sorted(
            (layer, expert, rank)
            for layer, wanted in plan.items()
            for rank in range(self.toy.ranks)
            for expert in wanted[rank].tolist()
            if expert >= 0 and self.toy.home_of(layer)[expert] == self.toy.rank
        )
        returned = self.toy.collect_gradients()
        order = [(-LAYERS.index(r.layer), r.expert, r.rank) for r in returned]
        assert order == sorted(order), "layers as they were sent, then a fixed order"
        assert sorted((r.layer, r.expert, r.rank) for r in returned) == expected
        wide = torch.float64 if self.toy.layout.dtype == torch.float64 else torch.float32
        for item in returned:
            value = self.gradient_value(item.layer, item.expert, item.rank)
            assert item.gradients.keys() == {"gate_up", "down"}
            for gradient in item.gradients.values():
                assert gradient.dtype == wide
                assert (gradient == value).all()
        self.checked_gradients += len(returned)


def _train(rank: int, setting: Setting, directory: Path, seed: int) -> int:
    toy = ToyRank(
        rank,
        setting.topology.ranks,
        directory if setting.cache else None,
        dtype=setting.dtype,
        spare_slots=SPARE_SLOTS,
        topology=setting.topology,
        speed=setting.speed,
    )
    checked = Training(toy, seed).run()
    toy.close()
    return checked


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_replica_and_every_gradient_is_exact(setting: Setting, tmp_path: Path) -> None:
    ranks = setting.topology.ranks
    checked = run_ranks(_train, ranks, setting, tmp_path, 7)
    assert sum(checked) > 30 * ranks
    assert list(tmp_path.iterdir()) == []


def _many_micro_steps(rank: int, directory: Path) -> tuple[int, int]:
    toy = ToyRank(rank, 2, directory)
    training = Training(toy, seed=1)
    toy.step_optimizer()
    training.update([training.draw() for _ in range(20)])
    before = (_private_bytes(), len(_descriptors()))
    training.update([training.draw() for _ in range(250)])
    after = (_private_bytes(), len(_descriptors()))
    toy.close()
    return after[0] - before[0], after[1] - before[1]


def _private_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def _descriptors() -> list[Path]:
    return list(Path("/proc/self/fd").iterdir())


def test_hundreds_of_micro_steps_leak_nothing(tmp_path: Path) -> None:
    for grown_bytes, new_descriptors in run_ranks(_many_micro_steps, 2, tmp_path):
        assert grown_bytes < 4 * 2**20
        assert new_descriptors == 0
