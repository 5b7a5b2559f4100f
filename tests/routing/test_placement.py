"""Misplaced sequences among right ones: refused by name, with routers of a real model.

The rollout is the same model with other weights nearby, so engine and trainer differ as they do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from foremoe.errors import InvalidInputError
from foremoe.integrations.transformers_routers import hook_routers
from foremoe.routing.mismatch import RoutingMismatch
from foremoe.routing.placement import SequenceRows, overlap
from foremoe.routing.replay import RoutingReplay

EXPERTS, VOCABULARY = 16, 300
LENGTHS = {"a": 260, "b": 130, "loop": 200, "c": 130, "d": 90, "e": 20, "f": 20}


@dataclass(frozen=True)
class Batch:
    """A micro-batch of packed sequences, its model, and what a rollout recorded of it."""

    model: Qwen3MoeForCausalLM
    replay: RoutingReplay
    tokens: Tensor
    rows: dict[str, Tensor]
    rollout: Tensor

    def check(self, given: Tensor) -> float:
        """Replay; the share of tokens that differ in some layer's routing."""
        layers = self.replay.layers
        self.replay.mismatch = RoutingMismatch(layers, EXPERTS)
        with torch.no_grad(), self.replay.replay(given, self.rows):
            self.model(self.tokens)
        return max(layer.differing_share for layer in self.replay.mismatch.check())


@cache
def batch(top_k: int) -> Batch:
    torch.manual_seed(0)
    settings = {"num_experts": EXPERTS, "num_experts_per_tok": top_k, "moe_intermediate_size": 8}
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 32, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings, **shape, **heads)).eval()
    replay, _ = hook_routers(model, [0, 1, 2, 3])
    rows, parts, start = {}, [], 0
    for name, length in LENGTHS.items():
        rows[name] = torch.arange(start, start + length)
        text = torch.randint(0, VOCABULARY, (length,))
        parts.append(text if name != "loop" else text[:3].repeat(length)[:length])
        start += length
    tokens = torch.cat(parts).unsqueeze(0)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.02 * tensor.std(correction=0) * torch.randn_like(tensor))
        with replay.record() as recorded:
            model(tokens)
    model.load_state_dict(trained)
    return Batch(model, replay, tokens, rows, recorded().long())


def moved(ids: Tensor, at: Tensor, layers: slice, by: int) -> Tensor:
    """Some rows, one after the other, take the routing of the row before, or after."""
    ids = ids.clone()
    ids[at, layers] = ids[at.roll(by), layers]
    return ids


def swapped(ids: Tensor, one: Tensor, other: Tensor, layers: slice) -> Tensor:
    ids = ids.clone()
    ids[one, layers], ids[other, layers] = ids[other, layers].clone(), ids[one, layers].clone()
    return ids


ALL, ONE = slice(None), slice(2, 3)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_what_engines_differ_in_passes(top_k: int) -> None:
    """A text in a loop among them."""
    one = batch(top_k)
    assert 0.02 < one.check(one.rollout) < 0.3


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (
            lambda ids, at: moved(ids, at["b"], ALL, 1),
            "layers 0, 1, 2 and 1 more, sequence 'b' is misplaced, the row after it",
        ),
        (
            lambda ids, at: moved(ids, at["b"], ONE, -1),
            "layer 2, sequence 'b' is misplaced, the row before it",
        ),
        (
            lambda ids, at: moved(ids, at["a"][130:], ONE, 1),
            "layer 2, sequence 'a' is misplaced, the row after it",
        ),
        (
            lambda ids, at: swapped(ids, at["b"], at["c"], ALL),
            "layers 0, 1, 2 and 1 more, sequences 'b', 'c' does not belong",
        ),
        (
            lambda ids, at: swapped(ids, at["b"], at["c"], ONE),
            "layer 2, sequences 'b', 'c' does not belong",
        ),
        (
            lambda ids, at: swapped(ids, at["a"][130:], at["c"], ONE),
            "layer 2, sequences 'a', 'c' does not belong",
        ),
    ],
    ids=["late", "early in one layer", "half", "swapped", "swapped in one layer", "half swapped"],
)
def test_what_is_misplaced_in_some_sequences_is_refused_by_name(
    move: Callable[[Tensor, dict[str, Tensor]], Tensor], message: str
) -> None:
    one = batch(2)
    with pytest.raises(InvalidInputError, match=f"the routing of {message}"):
        one.check(move(one.rollout, one.rows))


def test_top_1_routing_is_judged_over_all_layers() -> None:
    one = batch(1)
    with pytest.raises(InvalidInputError, match="all layers, sequences 'b', 'c' does not belong"):
        one.check(swapped(one.rollout, one.rows["b"], one.rows["c"], ALL))


def test_right_passes_do_not_make_up_for_a_wrong_one() -> None:
    one = batch(2)
    layers, wrong = one.replay.layers, moved(one.rollout, torch.arange(850), ALL, 1)
    mismatch = one.replay.mismatch = RoutingMismatch(layers, EXPERTS)
    for given in (*[one.rollout] * 5, wrong):
        mismatch.check()
        with torch.no_grad(), one.replay.replay(given, one.rows):
            one.model(one.tokens)
    with pytest.raises(InvalidInputError, match="is misplaced"):
        mismatch.check()


def test_ordinary_routing_of_many_shapes_passes() -> None:
    """Short sequences, up to 30% of tokens routed otherwise, a constant text with a near tie."""
    chance = torch.Generator().manual_seed(3)

    def below(end: int) -> int:
        return int(torch.randint(1, end, (), generator=chance))

    for experts, top_k in [(16, 1), (8, 2), (128, 8), (64, 6), (32, 4)] * 2:
        lengths = [below(500) for _ in range(below(12))]
        rows = SequenceRows(
            {
                str(index): torch.arange(sum(lengths[:index]), sum(lengths[: index + 1]))
                for index in range(len(lengths))
            }
        )
        shape = (sum(lengths), 4, experts)
        live, other = (torch.randn(shape, generator=chance).topk(top_k).indices for _ in "ab")
        differs = torch.rand(shape[:2], generator=chance) < 0.3 * torch.rand(1, generator=chance)
        given = torch.where(differs.unsqueeze(-1), other, live)
        same = live[0].clone()
        live[: lengths[0]] = given[: lengths[0]] = same
        tied = next(e for e in range(experts) if e not in same[1].tolist())
        given[: lengths[0], 1, -1] = tied
        mismatch = RoutingMismatch((0, 1, 2, 3), experts)
        for layer in range(4):
            mismatch.compare(layer, live[:, layer], given, rows)
        mismatch.check()


class StaysOnItsDevice(TorchDispatchMode):
    """Fails when a tensor is copied to or from a device: that waits for it."""

    def __torch_dispatch__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        if call is torch.ops.aten._to_copy.default:
            assert result.device == args[0].device
        return result


def test_a_layer_is_compared_without_waiting_for_its_device() -> None:
    rows = SequenceRows({"a": torch.arange(200), "b": torch.arange(200, 300)}, "meta")
    live = torch.zeros(300, 2, dtype=torch.int64, device="meta")
    given = torch.zeros(300, 4, 2, dtype=torch.int64, device="meta")
    with StaysOnItsDevice():
        overlap(live, given, 1, rows, EXPERTS)
