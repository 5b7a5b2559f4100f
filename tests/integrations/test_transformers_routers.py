"""Hooks on Transformers' routers: what observers see, and routers that are not known."""

import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from foremoe.errors import InvalidInputError
from foremoe.foresight.routing import Routing
from foremoe.integrations.transformers import register
from foremoe.integrations.transformers_routers import Softmax, hook_routers, selection_biases
from foremoe.routing.balance_losses import count_experts
from foremoe.routing.replay import NO_EXPERT
from foremoe.routing.router_losses import LossWeights, RouterLosses
from foremoe.routing.selection_bias import BiasBalancer
from foremoe.vocabulary import Stage
from tests.integrations.transformers_models import FAMILIES, VOCABULARY


def build(family: str, **options: Any) -> Any:
    """A random model of the family, in this process."""
    torch.manual_seed(0)
    known = FAMILIES[family]
    config = getattr(transformers, f"{known.model}Config")
    return known.kind(config(**known.settings | options))


def batch() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))


def test_the_micro_batch_loss_is_transformers_own() -> None:
    """Theirs is top_k times ours, and takes all layers for one: equal where there is one."""
    model = build("mixtral", num_hidden_layers=1)
    replay, _ = hook_routers(model, [0])
    losses = RouterLosses((0,), 8, LossWeights(micro_batch=1.0))
    replay.observers.append(losses)
    with losses.observing():
        expected = model(batch(), output_router_logits=True).aux_loss
    total = losses.total()
    assert 2 * total.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward(retain_graph=True)
    router = model.model.layers[0].mlp.gate.weight
    own, router.grad = router.grad, None
    total.backward()
    assert torch.allclose(2 * router.grad, own, rtol=1e-4, atol=1e-9)


def test_selection_biases_move_by_what_the_routers_chose() -> None:
    model = build("deepseek_v3")
    replay, _ = hook_routers(model, [1, 2])
    biases = selection_biases(model)
    assert list(biases) == [1, 2]
    before = {layer: bias.clone() for layer, bias in biases.items()}
    balancer = BiasBalancer(biases, rate=0.5)
    replay.observers.append(balancer)
    for _ in range(2):  # as activation checkpointing runs it again
        with balancer.micro_step(0), replay.record() as recorded:
            model(batch())
    chosen, counts = recorded(), balancer.update()
    for position, layer in enumerate(replay.layers):
        expected = count_experts(chosen[:, position], 8)
        assert torch.equal(counts[layer], expected)
        moved = model.model.layers[layer].mlp.gate.e_score_correction_bias - before[layer]
        assert torch.equal(moved, 0.5 * torch.sign(expected.float().mean() - expected))


class ModelWithLoss(nn.Module):
    """``model(batch)`` is the loss, as in the guide."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config

    def forward(self, tokens: Tensor) -> Tensor:
        loss: Tensor = self.model(tokens, labels=tokens).loss
        return loss


def test_the_guides_code_runs_as_it_stands() -> None:
    """docs/routing.md: R3 by sequence, then losses and biases over a mini-batch."""
    model = ModelWithLoss(build("deepseek_v3"))
    replay, _ = hook_routers(model, [1, 2])
    ids = np.tile(np.arange(2, dtype=np.uint8), (8, 2, 1))
    names: dict[str, Any] = {
        "model": model,
        "replay": replay,
        "num_experts": 8,
        "group": None,
        "gloo_group": None,
        "session": SimpleNamespace(micro_step=nullcontext),
        "index": 0,
        "stage": Stage.UPDATE,
        "rows": {"a": torch.arange(9)},
        "tokens": 9,
        "rollout": {"a": Routing("a", ids, 8, (1, 2), np.zeros(8, np.uint8))},
        "mini_batch": [batch(), batch()],
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
    }
    guide = Path(__file__).parents[2] / "docs" / "routing.md"
    before = {layer: bias.clone() for layer, bias in selection_biases(model).items()}
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, guide.name, "exec"), names)
    assert len(replay.observers) == 2
    for layer, bias in selection_biases(model).items():
        assert not torch.equal(bias, before[layer])


def test_a_router_that_weighs_otherwise_is_refused() -> None:
    model = build("qwen3_moe")
    model.model.layers[1].mlp.gate.register_forward_hook(
        lambda _module, _args, output: (output[0], output[1] * 2, output[2])
    )
    hook_routers(model, [1])
    with pytest.raises(InvalidInputError, match="Qwen3MoeTopKRouter of layer 1 weighs experts"):
        model(batch())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_experts_function_is_the_stock_models(family: str) -> None:
    """The same loss and gradients; -1 and ids past the experts, as others mask, count nothing."""
    register()
    losses, gradients = [], []
    for implementation in ("eager", "foremoe"):
        model = build(family).double()
        model.set_experts_implementation(implementation)
        loss = model(batch(), labels=batch()).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert gradients[1].keys() == gradients[0].keys()
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, rtol=0, atol=1e-12), name
    experts = next(m for name, m in model.named_modules() if name.endswith(".experts"))
    hidden = torch.randn(3, 32, dtype=torch.float64)
    weights = torch.ones(3, 2, dtype=torch.float64)
    output = experts(hidden, torch.tensor([[1, -1], [-1, 8], [1, 8]]), weights)
    assert torch.equal(output[1], torch.zeros(32))
    alone = experts(hidden, torch.ones(3, 1, dtype=torch.int64), weights[:, :1])
    torch.testing.assert_close(output[[0, 2]], alone[[0, 2]])


def test_padding_is_replayed_where_experts_are_not_divided() -> None:
    register()
    model = build("qwen3_moe")
    model.set_experts_implementation("foremoe")
    replay, _ = hook_routers(model, [1, 2])
    with replay.record() as recorded:
        live = model(batch()).logits
    ids = recorded()
    ids[-1] = NO_EXPERT
    with replay.replay(ids):
        padded = model(batch()).logits
    torch.testing.assert_close(padded.flatten(0, 1)[:-1], live.flatten(0, 1)[:-1])
    assert not torch.allclose(padded[-1, -1], live[-1, -1])


def test_a_dense_layer_has_no_router() -> None:
    with pytest.raises(InvalidInputError, match=r"no top-k router in layers \[0\]"):
        hook_routers(build("qwen3_moe"), [0, 1])


def test_experts_that_the_live_router_would_never_choose_are_weighed_with_finite_gradients() -> (
    None
):
    """Their probabilities underflow to 0, so the usual formula would be 0 / 0."""
    logits = torch.tensor([[300.0, 0.0, 1.0, 200.0]], requires_grad=True)
    weights = Softmax(normalise=True).weights(logits, torch.tensor([[1, 2]]))
    torch.testing.assert_close(weights, torch.softmax(torch.tensor([[0.0, 1.0]]), dim=-1))
    weights[0, 0].backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] > 0
