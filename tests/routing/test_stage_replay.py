"""R2 and R3: each stage's routing comes from where the mode says, by sequence."""

import numpy as np
import pytest
import torch
from torch import Tensor

from foremoe.errors import InvalidInputError, UnknownError
from foremoe.foresight.routing import Fault, FaultKind, Routing
from foremoe.routing.mismatch import RoutingMismatch
from foremoe.routing.replay import NO_EXPERT, RoutingReplay
from foremoe.routing.stage_replay import OFF, R2, R3, ReplayMode, RoutingSource, StageReplay
from foremoe.vocabulary import Stage

LAYERS, EXPERTS, TOP_K = (1, 2), 8, 2
LENGTHS = {"a": 5, "b": 3}


def forward(replay: RoutingReplay, tokens: int, seed: int) -> Tensor:
    """Ids in use ``[tokens, L, K]`` of random routers; another seed is another model."""
    logits = torch.randn(
        tokens, len(LAYERS), EXPERTS, generator=torch.Generator().manual_seed(seed)
    )
    used = []
    for position, layer in enumerate(LAYERS):
        probabilities = logits[:, position].softmax(dim=-1)
        weights, chosen = probabilities.topk(TOP_K)
        ids, scores = replay.route(
            layer, chosen, weights, lambda given, p=probabilities: p.gather(-1, given)
        )
        assert torch.equal(scores > 0, ids >= 0)
        used.append(ids)
    return torch.stack(used, dim=1)


def rows(order: str, padding: int) -> tuple[dict[str, Tensor], int]:
    """The sequences one after the other, ``padding`` rows behind each, and the number of rows."""
    placed, start = {}, 0
    for name in order:
        placed[name] = torch.arange(start, start + LENGTHS[name])
        start += LENGTHS[name] + padding
    return placed, start


def rollout(name: str) -> Routing:
    """Of a decoder with a dense layer that carries zeros; the last token has no row."""
    tokens = LENGTHS[name] - 1
    ids = np.random.default_rng(len(name) + ord(name)).permuted(
        np.tile(np.arange(EXPERTS, dtype=np.uint8), (tokens, 3, 1)), axis=-1
    )[..., :TOP_K]
    return Routing(name, ids, EXPERTS, (0, 1, 2), np.zeros(tokens, np.uint8))


def test_r2_replays_in_update_what_recompute_chose_in_another_packing() -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    routing = StageReplay(replay, R2)
    first, tokens = rows("ab", padding=0)
    with routing.micro_step(Stage.RECOMPUTE, first, tokens):
        chosen = forward(replay, tokens, seed=0)
    second, tokens = rows("ba", padding=2)
    with routing.micro_step(Stage.UPDATE, second, tokens):
        replayed = forward(replay, tokens, seed=1)
    for name in LENGTHS:
        assert torch.equal(replayed[second[name]], chosen[first[name]])
    assert torch.equal((replayed == NO_EXPERT).all(dim=(1, 2)).nonzero()[:, 0], PADDED)
    routing.forget()
    with (
        pytest.raises(UnknownError, match="no routing of sequence 'b'"),
        routing.micro_step(Stage.UPDATE, second, tokens),
    ):
        pass


PADDED = torch.tensor([3, 4, 10, 11])


@pytest.mark.parametrize("stage", list(Stage))
def test_r3_replays_the_rollout_and_routes_the_last_token_live(stage: Stage) -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    placed, tokens = rows("ab", padding=1)
    given = {name: rollout(name) for name in LENGTHS}
    with StageReplay(replay, R3).micro_step(stage, placed, tokens, given):
        used = forward(replay, tokens, seed=2)
    live = forward(RoutingReplay(LAYERS, TOP_K), tokens, seed=2)
    for name, at in placed.items():
        assert np.array_equal(used[at[:-1]], given[name].ids[:, 1:])
        assert torch.equal(used[at[-1]], live[at[-1]])


def test_stages_switch_one_by_one() -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    mode = ReplayMode(recompute=RoutingSource.LIVE, update=RoutingSource.ROLLOUT)
    placed, tokens = rows("a", padding=1)
    routing = StageReplay(replay, mode)
    given = {"a": rollout("a")}
    with routing.micro_step(Stage.RECOMPUTE, placed, tokens, given):
        live = forward(replay, tokens, seed=3)
    assert torch.equal(live[placed["a"]], forward(RoutingReplay(LAYERS, TOP_K), tokens, 3)[:-1])
    with routing.micro_step(Stage.UPDATE, placed, tokens, given):
        assert not torch.equal(forward(replay, tokens, seed=3), live)
    routing.mode = OFF
    with routing.micro_step(Stage.UPDATE, placed, tokens):
        assert torch.equal(forward(replay, tokens, seed=3), live)


def test_misplaced_routing_ends_the_micro_step() -> None:
    replay = RoutingReplay(LAYERS, TOP_K)
    replay.mismatch = RoutingMismatch(LAYERS, EXPERTS)
    tokens = 300
    live = forward(RoutingReplay(LAYERS, TOP_K), tokens, seed=4).numpy().astype(np.uint8)
    late = Routing("long", live[:-1], EXPERTS, LAYERS, np.zeros(tokens - 1, np.uint8), start=1)
    routing = StageReplay(replay, R3)
    with (
        pytest.raises(
            InvalidInputError, match="layers 1, 2, sequence 'long' is misplaced, the row af"
        ),
        routing.micro_step(Stage.UPDATE, {"long": torch.arange(tokens)}, tokens, {"long": late}),
    ):
        forward(replay, tokens, seed=4)


def test_routing_that_does_not_fit_is_refused() -> None:
    placed, tokens = rows("a", padding=0)
    routing = StageReplay(RoutingReplay(LAYERS, TOP_K), R3)
    lost = Fault(FaultKind.LAYER_NOT_CAPTURED, "a", 4, 2)
    one = rollout("a")
    long = Routing("a", one.ids, EXPERTS, one.layers, one.rows, start=2)
    faulty = Routing("a", one.ids, EXPERTS, one.layers, one.rows, faults=(lost,))
    for given, message in (
        (long, "5 tokens, but its routing has rows 2 to 5"),
        (faulty, "layer 2"),
    ):
        with (
            pytest.raises(InvalidInputError, match=message),
            routing.micro_step(Stage.UPDATE, placed, tokens, {"a": given}),
        ):
            pass
