"""Unmodified Qwen3-MoE code on ForeMoE: the stock model's losses and gradients."""

from pathlib import Path

import pytest
import torch

from tests.processes import run_ranks
from tests.training import transformers_workers as workers


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    workers.write_model(folder)
    return folder


@pytest.mark.parametrize("ranks", [2, 4])
def test_balanced_training_equals_the_stock_model(model_folder: Path, ranks: int) -> None:
    losses, gradients = workers.train_stock(model_folder, ranks)
    results = run_ranks(workers.train, ranks, model_folder, ranks, "float32")
    for run in ("at home", "balanced"):
        own = [results[index % ranks][run][0][index // ranks] for index in range(len(losses))]
        assert own == pytest.approx(losses, rel=1e-5)
        for name, gradient in gradients.items():
            parts = [result[run][1][name] for result in results]
            actual = torch.cat(parts) if ".experts." in name else parts[0]
            tolerance = 2e-5 * float(gradient.abs().max())
            assert torch.allclose(actual, gradient, rtol=0, atol=tolerance), (run, name)


def test_experts_that_change_homes_change_nothing(model_folder: Path) -> None:
    for expected, actual in run_ranks(workers.train_moving, 2, model_folder, 2):
        assert actual["losses"] == pytest.approx(expected["losses"], rel=1e-10)
        assert actual["weights"].keys() == expected["weights"].keys()
        for name, weight in expected["weights"].items():
            assert torch.allclose(actual["weights"][name], weight, rtol=0, atol=1e-10), name
        for moment, other in zip(actual["moments"], expected["moments"], strict=True):
            assert torch.allclose(moment, other, rtol=0, atol=1e-10)


def test_replicas_change_no_gradient_in_float64(model_folder: Path) -> None:
    for result in run_ranks(workers.train, 2, model_folder, 2, "float64"):
        losses, gradients = result["at home"]
        assert result["balanced"][0] == pytest.approx(losses, rel=1e-9)
        for name, gradient in gradients.items():
            tolerance = 1e-9 * float(gradient.abs().max())
            actual = result["balanced"][1][name]
            assert torch.allclose(actual, gradient, rtol=0, atol=tolerance), name
