"""The engine over real processes, gloo and shared memory: every byte and every sum is checked."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.processes import run_ranks
from tests.transfer.toy_group import LAYERS, ToyRank, random_replicas


def _gradient_value(micro_step: int, layer: int, expert: int, rank: int) -> float:
    return float(1 + rank + 10 * expert + 100 * layer + 1000 * micro_step)


def _train(rank: int, ranks: int, directory: Path | None, seed: int, dtype: torch.dtype) -> int:
    """Random mini-batches with prefetch of the next micro-step, as a training loop does it."""
    rng = np.random.default_rng(seed)
    toy = ToyRank(rank, ranks, directory, dtype=dtype)
    checked = 0
    micro_step = 0
    for _ in range(3):
        toy.step_optimizer()
        plans = [
            {layer: random_replicas(rng, toy.home_of(layer), ranks, 2) for layer in LAYERS}
            for _ in range(4)
        ]
        for layer in LAYERS:
            toy.promise(layer, plans[0][layer])
        for index, plan in enumerate(plans):
            micro_step += 1
            held = {layer: toy.acquire_checked(layer, plan[layer]) for layer in LAYERS}
            for layer in reversed(LAYERS):
                for replica in held[layer]:
                    replica.check_held()
                    for gradient in replica.gradients.values():
                        gradient += _gradient_value(micro_step, layer, replica.expert, rank)
                toy.engine.return_gradients(layer)
                if index + 1 < len(plans):
                    toy.promise(layer, plans[index + 1][layer])
            checked += _check_returned(toy, plan, micro_step)
    toy.close()
    return checked


def _check_returned(toy: ToyRank, plan: dict[int, np.ndarray], micro_step: int) -> int:
    expected = sorted(
        (layer, expert, rank)
        for layer, wanted in plan.items()
        for rank in range(toy.ranks)
        for expert in wanted[rank].tolist()
        if expert >= 0 and toy.home_of(layer)[expert] == toy.rank
    )
    returned = toy.engine.collect_gradients()
    assert [(r.layer, r.expert, r.rank) for r in returned] == expected
    for item in returned:
        value = _gradient_value(micro_step, item.layer, item.expert, item.rank)
        for gradient in item.gradients.values():
            wide = torch.float64 if toy.layout.dtype == torch.float64 else torch.float32
            assert gradient.dtype == wide
            assert (gradient == value).all()
    return len(returned)


@pytest.mark.parametrize(
    ("ranks", "with_cache", "dtype"),
    [(2, True, torch.bfloat16), (4, True, torch.float64), (2, False, torch.float32)],
)
def test_every_replica_and_every_gradient_is_exact(
    ranks: int, with_cache: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    directory = tmp_path if with_cache else None
    checked = run_ranks(_train, ranks, ranks, directory, 7, dtype)
    assert sum(checked) > 20 * ranks
    assert list(tmp_path.iterdir()) == []
