"""Little memory for returning gradients: their sum is the same, to the last bit."""

from collections.abc import Sequence

import numpy as np
import torch

from foremoe.training.gradient_sums import GradientSums
from foremoe.training.home_experts import HomeExperts
from foremoe.transfer.gradients import ReturnedGradient
from foremoe.transfer.slots import slot_bytes
from tests.processes import run_ranks
from tests.transfer.toy_group import LAYERS, SHAPES, ToyRank, layout


def _sum_in_pieces(rank: int, limited: bool) -> float | None:
    """Of what replicas of expert 0 on all other ranks have; bfloat16 shows when it is rounded."""
    least = 2 * slot_bytes(layout(), True) + layout().gradient_layout().nbytes
    toy = ToyRank(rank, 4, None, spare_slots=1, limit_bytes=least if limited else None)
    parameters = {
        name: torch.nn.Parameter(torch.zeros(2, *shape, dtype=torch.bfloat16))
        for name, shape in SHAPES.items()
    }
    add = GradientSums({LAYERS[0]: HomeExperts(LAYERS[0], parameters, (0, 1))})
    calls = 0

    def sink(returned: Sequence[ReturnedGradient]) -> None:
        nonlocal calls
        calls += 1
        if calls == (2 if limited else 1):  # FSDP, say, brings the own gradient only now
            for parameter in parameters.values():
                parameter.grad = torch.full_like(parameter, 0.25)
        add(returned)

    toy.engine._returns.sink = sink
    toy.step_optimizer()
    wanted = np.array([[-1], [0], [0], [0]], np.int32)
    toy.promise(LAYERS[0], wanted)
    for replica in toy.acquire_checked(LAYERS[0], wanted):
        for gradient in replica.gradients.values():
            gradient += {1: 1.0, 2: 0.003, 3: 0.003}[rank]
    toy.return_gradients(LAYERS[0])
    toy.engine.collect_gradients()
    toy.close()
    if rank != 0:
        return None
    assert calls == (3 if limited else 1)
    summed = parameters["down"].grad
    assert summed is not None
    return float(summed[0, 0, 0])


def test_the_byte_limit_does_not_change_a_sum() -> None:
    sums = [run_ranks(_sum_in_pieces, 4, limited)[0] for limited in (False, True)]
    assert sums == [1.2578125] * 2, "1.256 rounded once; in steps it would be 1.25"
