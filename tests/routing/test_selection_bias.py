"""Loss-free balancing: selection with bias, weights without, logical tokens counted once."""

import pytest
import torch

from foremoe.errors import InvalidInputError
from foremoe.planner.imbalance import imbalance
from foremoe.routing.balance_losses import count_experts
from foremoe.routing.selection_bias import BiasBalancer, select_experts
from tests.processes import run_ranks
from tests.routing import workers
from tests.routing.batches import EXPERTS, LAYERS, routing


def test_bias_selects_but_does_not_weigh() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.4]], requires_grad=True)
    chosen, weights = select_experts(scores, torch.tensor([-1.0, 0.0, 0.2]), 2)
    assert chosen.tolist() == [[2, 1]]
    assert weights.tolist() == [[pytest.approx(0.4), pytest.approx(0.5)]]
    weights.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0, 1.0, 1.0]]


def test_each_bias_moves_by_the_rate_towards_the_mean() -> None:
    bias = torch.zeros(4)
    balancer = BiasBalancer({3: bias}, rate=0.25)
    ids = torch.tensor([[0, 1], [0, 2], [0, 1], [0, 2], [-1, -1]])
    with balancer.micro_step(0):
        balancer.observe(3, ids, ids, ids)
    assert balancer.update()[3].tolist() == [4, 2, 2, 0]
    assert bias.tolist() == [-0.25, 0.0, 0.0, 0.25]
    balancer.update()
    assert bias.tolist() == [-0.25, 0.0, 0.0, 0.25]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_agree_and_a_repeated_forward_counts_once(ranks: int) -> None:
    steps = 2
    results = run_ranks(workers.balance_biases, ranks, steps)
    for layer in LAYERS:
        expected = torch.zeros(EXPERTS)
        for step in range(steps):
            counts = sum(
                count_experts(routing(layer, rank, 2 * step + m).expert_ids, EXPERTS)
                for rank in range(ranks)
                for m in range(2)
            )
            assert isinstance(counts, torch.Tensor)
            expected += 0.5 * torch.sign(counts.double().mean() - counts)
        assert all(torch.equal(result[layer], expected) for result in results)


def test_a_skewed_router_becomes_balanced() -> None:
    generator = torch.Generator().manual_seed(0)
    bias = torch.zeros(8)
    balancer = BiasBalancer({0: bias}, rate=0.01)
    reached = []
    for _ in range(120):
        logits = torch.randn(512, 8, generator=generator) + torch.linspace(0, 2, 8)
        chosen, _ = select_experts(torch.sigmoid(logits), bias, 2)
        with balancer.micro_step(0):
            balancer.observe(0, logits, logits, chosen)
        reached.append(imbalance(balancer.update()[0].numpy()))
    assert reached[0] > 2.0
    assert sum(reached[-10:]) / 10 < 1.2


def test_nothing_to_balance_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="a rate above 0"):
        BiasBalancer({}, 0.1)
