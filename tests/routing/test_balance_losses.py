"""Router losses against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from foremoe.routing.balance_losses import balance_loss, count_experts, micro_batch_loss, z_loss


def test_counts_leave_padding_out() -> None:
    ids = torch.tensor([[0, 2], [2, 1], [-1, -1]], dtype=torch.int16)
    assert count_experts(ids, 4).tolist() == [1, 1, 2, 0]


def test_uniform_routing_costs_one() -> None:
    ids = torch.tensor([[0, 1], [2, 3]])
    assert float(micro_batch_loss(torch.full((2, 4), 0.25), ids)) == pytest.approx(1.0)


def test_all_tokens_on_one_expert_cost_the_number_of_experts() -> None:
    probabilities = torch.tensor([[1.0, 0, 0, 0]] * 3)
    assert float(micro_batch_loss(probabilities, torch.zeros(3, 1).long())) == pytest.approx(4.0)


def test_counts_of_another_batch_decide() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    ids = torch.tensor([[0, 1], [0, 1], [-1, -1]])
    loss = balance_loss(probabilities, ids, torch.tensor([1, 0, 3]), 2)
    assert float(loss) == pytest.approx(3 * (0.25 * 0.6 + 0.75 * 0.15))


def test_gradient_is_that_of_the_probabilities_alone() -> None:
    probabilities = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0], [0], [1], [2], [-1]])
    micro_batch_loss(probabilities, ids).backward()
    row = 3 * torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64) / 4
    expected = torch.cat([row.expand(4, 3), torch.zeros(1, 3, dtype=torch.float64)])
    assert probabilities.grad is not None
    assert torch.allclose(probabilities.grad, expected, rtol=0, atol=1e-15)


def test_a_batch_of_padding_costs_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    ids = torch.full((3, 2), -1)
    total = micro_batch_loss(F.softmax(logits, dim=-1), ids) + z_loss(logits, ids, 1)
    total.backward()
    assert total.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_z_loss_of_equal_logits() -> None:
    logits = torch.full((7, 8), 2.0, dtype=torch.float64)
    loss = z_loss(logits, torch.zeros(7, 1).long(), 7)
    assert float(loss) == pytest.approx((2.0 + math.log(8)) ** 2)
