"""The verifier: mismatch is reported, misplaced routing is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from foremoe.errors import InvalidInputError
from foremoe.routing.mismatch import RoutingMismatch
from tests.processes import run_ranks
from tests.routing import workers
from tests.routing.mismatches import EXPERTS, LAYERS, TOKENS, TOP_K, compare, live_routing


def perturbed(given: Tensor, share: float) -> Tensor:
    """The routing with that share of tokens choosing other experts."""
    other = live_routing(seed=99)
    changed = torch.rand(len(given), generator=torch.Generator().manual_seed(1)) < share
    return torch.where(changed[:, None, None], other, given)


def test_the_same_routing_in_another_order_does_not_differ() -> None:
    live = live_routing()
    for layer in compare(live, live.flip(-1)).check():
        assert (layer.differing_tokens, layer.differing_pairs) == (0, 0)
        assert layer.agreement == 1.0
        assert layer.tokens == len(live)


def test_differing_tokens_are_counted_by_layer() -> None:
    live = live_routing()
    given = live.clone()
    given[:10, 1] = torch.where(given[:10, 1] == EXPERTS - 1, 0, EXPERTS - 1)[..., :1]
    first, second, third = compare(live, given).check()
    assert first.differing_share == third.differing_share == 0
    expected = [
        set(a) != set(b) for a, b in zip(live[:, 1].tolist(), given[:, 1].tolist(), strict=True)
    ]
    assert second.differing_tokens == sum(expected) > 0
    assert second.differing_share == sum(expected) / len(live)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_an_ordinary_mismatch_passes(share: float) -> None:
    live = live_routing()
    for layer in compare(live, perturbed(live, share)).check():
        assert layer.agreement == pytest.approx(1 - share, abs=0.1)


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda ids: ids.roll(1, 0), "the row after it"),
        (lambda ids: ids.roll(-1, 0), "the row before it"),
        (lambda ids: ids.roll(1, 1), "the MoE layer after it"),
        (lambda ids: ids.roll(-1, 1), "the MoE layer before it"),
        (lambda ids: ids.view(10, -1, *ids.shape[1:]).transpose(0, 1).reshape(ids.shape), "belong"),
        (lambda ids: torch.zeros_like(ids) + torch.arange(TOP_K), "belong"),
    ],
    ids=["late", "early", "layer late", "layer early", "transposed", "constant"],
)
def test_misplaced_routing_is_refused(move: Callable[[Tensor], Tensor], message: str) -> None:
    live = live_routing()
    with pytest.raises(InvalidInputError, match=message):
        compare(live, move(perturbed(live, 0.1))).check()


def test_misplaced_routing_behind_the_first_sequence_is_refused() -> None:
    """As when only the first of packed sequences is where it should be."""
    live = torch.cat([live_routing(seed) for seed in range(30)])
    right = 6 * TOKENS
    given = torch.cat([live[:right], live[right:].roll(1, 0)])
    with pytest.raises(InvalidInputError, match="the row after it"):
        compare(live, given).check()


def test_popular_experts_alone_do_not_pass() -> None:
    """Many pairs match by chance when most tokens choose the same experts."""
    live, other = live_routing(skew=2.0), live_routing(seed=5, skew=2.0)
    mismatch = compare(live, other)
    matching = 1 - mismatch.report()[0].differing_pairs / (TOP_K * len(live))
    assert 0.3 < matching < 0.5
    with pytest.raises(InvalidInputError, match="does not belong"):
        mismatch.check()


def test_tokens_without_a_record_and_few_tokens_are_not_judged() -> None:
    live = live_routing()
    given = torch.full_like(live, -2)
    given[:20] = live[:20].roll(1, 0)
    assert [layer.tokens for layer in compare(live, given).check()] == [20] * len(LAYERS)


def test_reset_forgets() -> None:
    mismatch = compare(live_routing(), live_routing().roll(1, 0))
    mismatch.reset()
    assert [layer.tokens for layer in mismatch.check()] == [0] * len(LAYERS)


def test_ranks_are_judged_together() -> None:
    """One rank's routing is off by one: both refuse, or the other would wait for it for ever."""
    for message in run_ranks(workers.check_mismatch, 2, 1):
        assert "rank 1: the routing of layers 2, 3, 7 is misplaced, the row after it" in message
    assert run_ranks(workers.check_mismatch, 2, 2) == ["", ""]


def test_layers_of_a_recorder_keep_their_ids() -> None:
    assert [layer.layer for layer in RoutingMismatch((3, 9), 4).report()] == [3, 9]
