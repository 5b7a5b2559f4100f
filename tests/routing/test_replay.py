"""Routing replay: what is recorded, what is replayed, whose scores are used."""

import pytest
import torch
import torch.nn.functional as F

from foremoe.errors import InvalidInputError
from foremoe.routing.replay import LIVE, NO_EXPERT, RoutingReplay

LAYERS, TOP_K, TOKENS, EXPERTS = (2, 5), 2, 4, 6


def route(replay: RoutingReplay, logits: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A top-k router in front of ``replay``, on both layers: chosen experts and weights."""
    probabilities = F.softmax(logits, dim=-1)
    weights, chosen = probabilities.topk(TOP_K, dim=-1)
    return [
        replay.route(layer, chosen, weights, lambda ids: probabilities.gather(-1, ids))
        for layer in LAYERS
    ]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(0))


def test_outside_of_the_blocks_routing_is_untouched(logits: torch.Tensor) -> None:
    weights, chosen = F.softmax(logits, dim=-1).topk(TOP_K, dim=-1)
    for ids, scores in route(RoutingReplay(LAYERS, TOP_K), logits):
        assert torch.equal(ids, chosen)
        assert torch.equal(scores, weights)


def test_recorded_routing_replays_as_it_was(logits: torch.Tensor) -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    with replay.record() as recorded:
        original = route(replay, logits)
    expert_ids = recorded()
    assert expert_ids.shape == (TOKENS, len(LAYERS), TOP_K)
    with replay.replay(expert_ids):
        replayed = route(replay, logits)
    for (ids, scores), (same_ids, same_scores) in zip(original, replayed, strict=True):
        assert torch.equal(ids, same_ids)
        assert torch.equal(scores, same_scores)


def test_replay_keeps_the_live_scores_and_their_gradient(logits: torch.Tensor) -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    given = torch.tensor([[[5, 0]] * len(LAYERS)] * TOKENS)
    logits.requires_grad_()
    with replay.replay(given):
        (ids, scores), _ = route(replay, logits)
    assert torch.equal(ids, given[:, 0])
    assert torch.equal(scores, F.softmax(logits, dim=-1)[:, [5, 0]])
    scores.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() > 0


def test_padding_goes_to_no_expert(logits: torch.Tensor) -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    valid = torch.tensor([True, False, True, False])
    with replay.record(valid) as recorded:
        (ids, scores), _ = route(replay, logits)
    assert torch.equal((ids >= 0).all(dim=1), valid)
    assert torch.equal((scores > 0).all(dim=1), valid)
    with replay.replay(recorded()):
        (ids, scores), _ = route(replay, logits)
    assert torch.equal((ids >= 0).all(dim=1), valid)
    assert (scores[~valid] == 0).all()


def test_wrong_shapes_are_refused(logits: torch.Tensor) -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    with (
        pytest.raises(InvalidInputError, match="expected expert ids"),
        replay.replay(torch.zeros(TOKENS, 1, TOP_K)),
    ):
        pass
    too_few = torch.zeros(TOKENS - 1, len(LAYERS), TOP_K)
    with (
        replay.replay(too_few),
        pytest.raises(InvalidInputError, match="layer 2 routes 4 tokens"),
    ):
        route(replay, logits)


def test_a_layer_that_was_never_reached_is_named() -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    with replay.record() as recorded:
        replay.route(2, torch.zeros(1, TOP_K), torch.zeros(1, TOP_K), lambda ids: ids)
    with pytest.raises(InvalidInputError, match=r"\[5\]"):
        recorded()


def test_tokens_without_a_record_are_routed_live(logits: torch.Tensor) -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    given = torch.tensor([[[5, 0]] * len(LAYERS)] * TOKENS)
    given[1] = LIVE
    weights, chosen = F.softmax(logits, dim=-1).topk(TOP_K, dim=-1)
    with replay.replay(given):
        (ids, scores), _ = route(replay, logits)
    assert torch.equal(ids[1], chosen[1])
    assert torch.equal(scores[1], weights[1])
    assert ids[[0, 2, 3]].tolist() == [[5, 0]] * 3


def test_a_pair_left_out_gives_no_gradient_whatever_its_experts_score() -> None:
    logits = torch.zeros(TOKENS, EXPERTS)
    logits[:, 0] = -200.0  # the probability of expert 0 underflows to 0
    logits.requires_grad_()
    probabilities = F.softmax(logits, dim=-1)

    def normalised(ids: torch.Tensor) -> torch.Tensor:
        values = probabilities.gather(-1, ids)
        return values / values.sum(dim=-1, keepdim=True)

    _, chosen = probabilities.topk(TOP_K, dim=-1)
    replay = RoutingReplay(LAYERS, TOP_K)
    with replay.replay(torch.full((TOKENS, len(LAYERS), TOP_K), NO_EXPERT)):
        ids, scores = replay.route(LAYERS[0], chosen, probabilities.gather(-1, chosen), normalised)
    assert torch.all(ids == NO_EXPERT)
    scores.sum().backward()
    assert torch.equal(scores, torch.zeros_like(scores))
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))
