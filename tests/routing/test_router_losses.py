"""Synchronised losses of many ranks and micro-steps equal those of one process with all tokens."""

import pytest
import torch

from foremoe.errors import InvalidInputError
from foremoe.routing.balance_losses import (
    balance_loss,
    count_experts,
    micro_batch_loss,
    routed_tokens,
    z_loss,
)
from foremoe.routing.router_losses import LossWeights, RouterLosses
from tests.processes import run_ranks
from tests.routing import workers
from tests.routing.batches import EXPERTS, LAYERS, Routing, joined, routing

EXACT = 1e-13


def batch(layer: int, ranks: int, micro_steps: range) -> Routing:
    return joined([routing(layer, r, m) for m in micro_steps for r in range(ranks)])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_equal_one_process(ranks: int) -> None:
    weights = LossWeights(global_batch=0.7, z=0.3)
    whole = {layer: batch(layer, ranks, range(1)) for layer in LAYERS}
    expected = workers.observe(RouterLosses(LAYERS, EXPERTS, weights), whole)
    expected.backward()
    results = run_ranks(workers.synchronised_losses, ranks, weights, 1, None)
    losses = [result[0][0] for result in results]
    assert sum(losses) / ranks == pytest.approx(expected.item(), abs=EXACT)
    for layer in LAYERS:
        parts = torch.cat([result[0][1][layer] for result in results]) / ranks
        assert torch.allclose(parts, workers.gradient(whole[layer]), rtol=0, atol=EXACT)


def test_micro_steps_balance_against_all_counts_so_far() -> None:
    """Algorithm 1 of arXiv 2501.11873: the buffer holds the synchronised counts of the step."""
    ranks, micro_steps = 2, 3
    results = run_ranks(
        workers.synchronised_losses, ranks, LossWeights(global_batch=1.0), micro_steps, None
    )
    for micro_step in range(micro_steps):
        expected = 0.0
        for layer in LAYERS:
            met = batch(layer, ranks, range(micro_step + 1))
            now = batch(layer, ranks, range(micro_step, micro_step + 1))
            counts = count_experts(met.expert_ids, EXPERTS)
            tokens = routed_tokens(now.expert_ids).sum()
            loss = balance_loss(now.probabilities, now.expert_ids, counts, tokens)
            expected += loss.item()
        mean = sum(result[micro_step][0] for result in results) / ranks
        assert mean == pytest.approx(expected / len(LAYERS), abs=EXACT)


def test_with_foresight_micro_steps_add_up_to_the_global_batch() -> None:
    ranks, micro_steps = 2, 3
    whole = {layer: batch(layer, ranks, range(micro_steps)) for layer in LAYERS}
    counts = {layer: count_experts(one.expert_ids, EXPERTS) for layer, one in whole.items()}
    weights = LossWeights(global_batch=1.0)
    expected = workers.observe(RouterLosses(LAYERS, EXPERTS, weights), whole)
    expected.backward()
    results = run_ranks(workers.synchronised_losses, ranks, weights, micro_steps, counts)
    share = [
        sum(int(routed_tokens(routing(LAYERS[0], r, m).expert_ids).sum()) for r in range(ranks))
        for m in range(micro_steps)
    ]
    share = [tokens / sum(share) for tokens in share]
    total = sum(results[r][m][0] * share[m] for r in range(ranks) for m in range(micro_steps))
    assert total / ranks == pytest.approx(expected.item(), abs=EXACT)
    for layer in LAYERS:
        parts = [
            results[r][m][1][layer] * share[m] / ranks
            for m in range(micro_steps)
            for r in range(ranks)
        ]
        gradient = workers.gradient(whole[layer])
        assert torch.allclose(torch.cat(parts), gradient, rtol=0, atol=EXACT)


def test_the_micro_batch_term_stands_beside_the_global_one() -> None:
    routings = {layer: routing(layer, 0, 0) for layer in LAYERS}
    parts = [
        workers.observe(RouterLosses(LAYERS, EXPERTS, weights), routings)
        for weights in (LossWeights(global_batch=1.0), LossWeights(micro_batch=0.1))
    ]
    both = RouterLosses(LAYERS, EXPERTS, LossWeights(global_batch=1.0, micro_batch=0.1))
    assert workers.observe(both, routings).item() == pytest.approx(sum(p.item() for p in parts))
    micro = [micro_batch_loss(one.probabilities, one.expert_ids) for one in routings.values()]
    assert parts[1].item() == pytest.approx(0.1 * sum(m.item() for m in micro) / len(LAYERS))


def test_reset_forgets_the_step() -> None:
    losses = RouterLosses(LAYERS, EXPERTS, LossWeights(global_batch=1.0))
    first = {layer: routing(layer, 0, 0) for layer in LAYERS}
    alone = workers.observe(losses, first).item()
    workers.observe(losses, {layer: routing(layer, 1, 1) for layer in LAYERS})
    assert workers.observe(losses, first).item() != pytest.approx(alone, abs=1e-6)
    losses.reset()
    assert workers.observe(losses, first).item() == pytest.approx(alone)


def test_a_repeated_forward_is_not_observed_and_a_missing_layer_is_named() -> None:
    losses = RouterLosses(LAYERS, EXPERTS, LossWeights(z=1.0))
    one = routing(LAYERS[0], 0, 0)
    losses.observe(LAYERS[0], one.logits, one.probabilities, one.expert_ids)
    with losses.observing():
        losses.observe(LAYERS[1], one.logits, one.probabilities, one.expert_ids)
    with pytest.raises(InvalidInputError, match=rf"\[{LAYERS[0]}\]"):
        losses.total()


def test_z_loss_is_the_mean_over_layers() -> None:
    routings = {layer: routing(layer, 0, 0) for layer in LAYERS}
    total = workers.observe(RouterLosses(LAYERS, EXPERTS, LossWeights(z=2.0)), routings)
    each = [z_loss(r.logits, r.expert_ids, len(r.logits) - 1) for r in routings.values()]
    assert total.item() == pytest.approx(2.0 * sum(e.item() for e in each) / len(LAYERS))
