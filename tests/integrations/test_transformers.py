"""Unmodified Transformers models on ForeMoE: the stock model's losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations import transformers_workers as workers
from tests.integrations.transformers_models import FAMILIES
from tests.processes import run_ranks

# Largest difference, relative to the loss and to the largest entry of a gradient. In bfloat16 the
# stock model's own gradients are up to 3e-2 from those it has in float32.
TOLERANCES = {"float32": (1e-5, 3e-5), "bfloat16": (1e-2, 4e-2)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, folder in folders.items():
        FAMILIES[name].write(folder)
    return folders


@pytest.fixture(scope="module")
def on_two_ranks(folders: dict[str, Path]) -> list[Any]:
    return run_ranks(workers.on_two_ranks, 2, folders)


@pytest.fixture(scope="module")
def on_four_ranks(folders: dict[str, Path]) -> list[Any]:
    return run_ranks(workers.train, 4, folders, 4, tuple(TOLERANCES))


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_the_stock_model(
    folders: dict[str, Path], on_two_ranks: list[Any], family: str, dtype: str
) -> None:
    assert_same(folders, family, dtype, [result["trained"] for result in on_two_ranks])


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("family", FAMILIES)
def test_four_ranks_equal_the_stock_model(
    folders: dict[str, Path], on_four_ranks: list[Any], family: str, dtype: str
) -> None:
    assert_same(folders, family, dtype, on_four_ranks)


def assert_same(folders: dict[str, Path], family: str, dtype: str, trained: list[Any]) -> None:
    ranks = len(trained)
    losses, gradients = workers.train_stock(family, folders[family], ranks, dtype)
    results = [result[family, dtype] for result in trained]
    loss_tolerance, gradient_tolerance = TOLERANCES[dtype]
    for run in ("at home", "balanced"):
        own = [results[index % ranks][run][0][index // ranks] for index in range(len(losses))]
        assert own == pytest.approx(losses, rel=loss_tolerance)
        assert set(results[0][run][1]) == set(gradients)
        for name, gradient in gradients.items():
            parts = [result[run][1][name] for result in results]
            actual = torch.cat(parts) if ".experts." in name else parts[0]
            tolerance = gradient_tolerance * float(gradient.abs().max())
            assert torch.allclose(actual, gradient, rtol=0, atol=tolerance), (run, name)


def test_an_attached_model_lives_on(folders: dict[str, Path], on_two_ranks: list[Any]) -> None:
    """Optimizer steps, model switches, offload, checkpoints, detach: as the stock model in one."""
    stock = workers.live_on_stock(folders["qwen3_moe"], 2)
    assert stock["before"][0] != pytest.approx(stock["after"][0], rel=1e-2)
    expected = {
        "attached": "before",
        "stepped": "after",
        "switched": "before",
        "switched back": "after",
        "reloaded": "before",
        "attached again": "before",
        "detached live": "live",
    }
    for rank, result in enumerate(one["life"] for one in on_two_ranks):
        assert result["same state"]
        assert result["same files"]
        assert result["hooks left"] == 0
        for event, losses in expected.items():
            assert result[event] == pytest.approx(stock[losses][rank], rel=1e-5), event


def test_experts_that_change_homes_change_nothing(on_two_ranks: list[Any]) -> None:
    for expected, actual in ((one["staying"], one["moving"]) for one in on_two_ranks):
        assert actual["losses"] == pytest.approx(expected["losses"], rel=1e-10)
        assert actual["weights"].keys() == expected["weights"].keys()
        for name, weight in expected["weights"].items():
            assert torch.allclose(actual["weights"][name], weight, rtol=0, atol=1e-10), name
        for moment, other in zip(actual["moments"], expected["moments"], strict=True):
            assert torch.allclose(moment, other, rtol=0, atol=1e-10)
