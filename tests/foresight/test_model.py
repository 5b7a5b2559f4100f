"""Which layers route, as configurations say it, and what a layer axis means."""

import json
from pathlib import Path
from typing import Any

import pytest

from foremoe.errors import InvalidInputError
from foremoe.foresight.model import MoeModel, load_model, moe_model_from_config

DEEPSEEK = {"n_routed_experts": 256, "num_experts_per_tok": 8, "num_hidden_layers": 61}
QWEN = {"num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 6}
LLAMA4 = {"num_local_experts": 16, "num_experts_per_tok": 1, "num_hidden_layers": 8}


@pytest.mark.parametrize(
    ("config", "experts", "top_k", "layers"),
    [
        ({**DEEPSEEK, "first_k_dense_replace": 3, "moe_layer_freq": 1}, 256, 8, range(3, 61)),
        (QWEN, 128, 8, range(6)),
        ({**QWEN, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, 128, 8, (1, 5)),
        ({**QWEN, "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 4}, 128, 8, range(2, 6)),
        ({**QWEN, "moe_layer_freq": [0, 1, 0, 1, 0, 1]}, 128, 8, (1, 3, 5)),
        ({"text_config": {**LLAMA4, "interleave_moe_layer_step": 2}}, 16, 1, (1, 3, 5, 7)),
        ({**LLAMA4, "moe_layers": [2, 6]}, 16, 1, (2, 6)),
    ],
)
def test_configurations_say_which_layers_route(
    config: dict[str, Any], experts: int, top_k: int, layers: Any
) -> None:
    model = moe_model_from_config(config)
    assert (model.num_experts, model.top_k, model.layers) == (experts, top_k, tuple(layers))


def test_configurations_that_transformers_writes_are_read(tmp_path: Path) -> None:
    """The file as ``save_pretrained`` leaves it, whatever its defaults add."""
    transformers = pytest.importorskip("transformers")
    for kind, options, layers in (
        ("Qwen3Moe", {"num_experts": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, (1,)),
        ("Glm4Moe", {"n_routed_experts": 4, "first_k_dense_replace": 2}, (2, 3)),
        ("Mixtral", {"num_local_experts": 4}, (0, 1, 2, 3)),
    ):
        config = getattr(transformers, f"{kind}Config")(
            num_hidden_layers=4, num_experts_per_tok=2, **options
        )
        config.save_pretrained(tmp_path)
        assert load_model(tmp_path / "config.json") == MoeModel(4, 2, 4, layers)


def test_a_layer_axis_is_all_layers_or_those_that_route() -> None:
    model = MoeModel(16, 4, 6, (1, 2, 5))
    assert list(model.positions(6, "ids")) == [1, 2, 5]
    assert list(model.positions(3, "ids")) == [0, 1, 2]
    with pytest.raises(InvalidInputError, match=r"ids: the layer axis has 4 entries, .* 6 decoder"):
        model.positions(4, "ids")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ((0, 1, 2, (0,)), "num_experts: must lie in"),
        ((2**16 + 1, 1, 2, (0,)), "num_experts: must lie in"),
        ((4, 2, 2**12 + 1, (0,)), "num_layers: must lie in"),
        ((4, 5, 2, (0,)), "top_k must lie in"),
        ((4, 2, 2, ()), "ascending, without repeats, at least 1"),
        ((4, 2, 2, (1, 0)), "ascending"),
        ((4, 2, 2, (0, 2)), r"layers must lie in \[0, 2\), got 0 to 2"),
    ],
)
def test_models_that_cannot_be_are_refused(model: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        MoeModel(*model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps({"num_hidden_layers": 4}), "has none of num_experts, n_routed_experts"),
        (json.dumps({**QWEN, "num_hidden_layers": "4"}), "none of num_hidden_layers as an integer"),
    ],
)
def test_files_that_are_no_configuration_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        load_model(tmp_path / "config.json")


def test_a_missing_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_model(tmp_path / "none.json")
