"""torchtitan 0.3.0 on ForeMoE: outputs, gradients and checkpoints of torchtitan alone."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

from tests.integrations import torchtitan_workers as workers
from tests.processes import run_ranks

# Of the largest entry; torchtitan multiplies in bfloat16, so a weight's gradient is rounded once
# for each copy of the expert.
TOLERANCE = 1e-2


def installed() -> str:
    try:
        return version("torchtitan")
    except PackageNotFoundError:
        return "none"


pytestmark = pytest.mark.skipif(
    not installed().startswith("0.3."),
    reason=f"needs torchtitan 0.3 (scripts/setup.sh installs it), found {installed()}",
)


@pytest.fixture(scope="module")
def on_two_ranks() -> list[dict[str, Any]]:
    return run_ranks(workers.on_two_ranks, 2)


@pytest.fixture(scope="module")
def on_four_ranks() -> list[dict[str, Any]]:
    return run_ranks(workers.on_four_ranks, 4)


@pytest.mark.parametrize("model", ["softmax", "gpt_oss"])
def test_two_balanced_ranks_equal_torchtitan_alone(
    on_two_ranks: list[dict[str, Any]], model: str
) -> None:
    assert_same([result[model] for result in on_two_ranks])


def test_four_balanced_ranks_equal_torchtitan_alone(on_four_ranks: list[dict[str, Any]]) -> None:
    assert_same([result["trained"] for result in on_four_ranks])


def assert_same(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["same checkpoint"]
        assert result["balanced tokens"] != result["at home tokens"]
        alone = result["alone"]
        for run in ("at home", "balanced", "detached"):
            outputs, gradients = result[run]
            assert all(map(torch.equal, outputs, alone[0])), run
            assert gradients.keys() == alone[1].keys()
            for name, expected in alone[1].items():
                exact = run != "balanced" or "experts." not in name
                assert_close(gradients[name], expected, 0.0 if exact else TOLERANCE)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    atol = tolerance * float(expected.abs().max())
    assert torch.allclose(actual, expected, rtol=0, atol=atol)


def test_an_attached_model_lives_on(on_two_ranks: list[dict[str, Any]]) -> None:
    for result in (one["life"] for one in on_two_ranks):
        assert result.pop("same checkpoint")
        before, after = result["before"][1], result["stepped"][1]
        assert not torch.allclose(before[0], after[0], rtol=0, atol=0.2 * float(after[0].max()))
        for event, runs in result.items():
            for actual, expected in zip(*runs, strict=True):
                exact = event in ("before", "loaded")
                assert_close(actual, expected, 0.0 if exact else 2 * TOLERANCE)


def test_routing_is_recorded_and_replayed(on_two_ranks: list[dict[str, Any]]) -> None:
    for result in (one["replay"] for one in on_two_ranks):
        assert result.pop("shape") == [workers.TOKENS, 2, 2]
        assert all(result.values()), result


def test_router_losses_see_the_gates(on_two_ranks: list[dict[str, Any]]) -> None:
    for result in (one["losses"] for one in on_two_ranks):
        assert result["observed"] == pytest.approx(result["by hand"], rel=1e-2)


def test_what_is_not_supported_is_refused(
    on_two_ranks: list[dict[str, Any]], on_four_ranks: list[dict[str, Any]]
) -> None:
    for result in on_two_ranks:
        plain, compiled, attached, part, undivided = result["refusals"]
        assert "add foremoe.integrations.torchtitan.dispatcher to override.imports" in plain
        assert "a compiled model" in compiled
        assert "attached already" in attached
        assert "pipeline parallelism" in part
        assert "the experts are not divided over ranks" in undivided
    for result in on_four_ranks:
        assert "beyond expert parallelism" in result["refusal"]
