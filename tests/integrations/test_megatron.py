"""Unmodified Megatron-Core 0.16.1 MoE layers on ForeMoE: its own outputs and ``main_grad``."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

from tests.integrations import megatron_workers as workers
from tests.processes import run_ranks


def installed() -> str:
    try:
        return version("megatron-core")
    except PackageNotFoundError:
        return "none"


pytestmark = pytest.mark.skipif(
    not installed().startswith("0.16."),
    reason=f"needs megatron-core 0.16 (pip install 'foremoe[megatron]'), found {installed()}",
)


@pytest.fixture(scope="module")
def on_two_ranks() -> list[dict[str, Any]]:
    return run_ranks(workers.on_two_ranks, 2)


@pytest.mark.parametrize("dispatcher", ["alltoall", "allgather"])
def test_two_balanced_ranks_equal_megatron_alone(
    on_two_ranks: list[dict[str, Any]], dispatcher: str
) -> None:
    assert_same([result[dispatcher] for result in on_two_ranks])


@pytest.fixture(scope="module")
def on_four_ranks() -> list[dict[str, Any]]:
    return run_ranks(workers.on_four_ranks, 4)


@pytest.mark.parametrize("dispatcher", ["alltoall", "allgather"])
def test_four_balanced_ranks_equal_megatron_alone(
    on_four_ranks: list[dict[str, Any]], dispatcher: str
) -> None:
    assert_same([result[dispatcher] for result in on_four_ranks])


def test_losses_and_selection_biases_see_logical_experts(
    on_four_ranks: list[dict[str, Any]],
) -> None:
    for result in (one["allgather"] for one in on_four_ranks):
        alone, balanced = (result[run][1] for run in ("alone", "balanced"))
        counted = [name for name in alone if name.endswith("local_tokens_per_expert")]
        assert len(counted) == 2
        for name in counted:
            assert alone[name].sum() > 0
            assert torch.equal(balanced[name], alone[name])


def test_an_attached_model_lives_on(on_two_ranks: list[dict[str, Any]]) -> None:
    """Optimizer step, model switch, offload and reload: no replica of older weights is used."""
    for life in (one["life"] for one in on_two_ranks):
        before, after = life["attached"][1], life["stepped"][1]
        assert not torch.allclose(before, after, rtol=0, atol=1e-2 * float(after.abs().max()))
        for actual, expected in life.values():
            assert_close(actual, expected, exact=False)


def assert_same(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["same checkpoint"]
        alone = result["alone"]
        for run, output_exact, exact in (
            ("at home", True, False),
            ("balanced", False, False),
            ("detached", True, True),
        ):
            outputs, gradients = result[run]
            for own, expected in zip(outputs, alone[0], strict=True):
                assert_close(own[0], expected[0], output_exact)
                assert_close(own[1], expected[1], exact)
            for name, expected in alone[1].items():
                assert_close(gradients[name], expected, exact)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, exact: bool) -> None:
    """Bit for bit, or to the rounding of sums and products taken in another order."""
    tolerance = 0.0 if exact else 1e-6 * float(expected.abs().max())
    assert torch.allclose(actual, expected, rtol=0, atol=tolerance)


def test_router_replay_records_and_replays_as_ever(on_two_ranks: list[dict[str, Any]]) -> None:
    for result in (one["replay"] for one in on_two_ranks):
        assert result["left to replay"] == 0
        assert all(value for name, value in result.items() if name != "left to replay"), result


def test_what_is_not_supported_is_refused(on_two_ranks: list[dict[str, Any]]) -> None:
    for messages in (one["refusals"] for one in on_two_ranks):
        assert "moe_router_fusion is not supported" in messages[0]
        assert "tokens must not be dropped" in messages[1]
        assert "pipeline parallelism" in messages[2]
