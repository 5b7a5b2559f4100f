"""What a carrier's axes mean: how many experts, and which decoder layers have them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from foremoe.errors import InvalidInputError
from foremoe.limits import MAX_EXPERTS, MAX_LAYERS, check_range

_Value = TypeVar("_Value", int, list[Any])
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")


@dataclass(frozen=True, slots=True)
class MoeModel:
    """The routed part of a model.

    num_experts: E; top_k: experts per token, K; num_layers: all decoder layers, dense ones too;
    layers: global 0-based ids of the decoder layers that route, ascending.

    Raises InvalidInputError, naming the field, when they do not fit each other.
    """

    num_experts: int
    top_k: int
    num_layers: int
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        check_range(self.num_layers, 1, MAX_LAYERS, "model: num_layers")
        check_range(self.num_experts, 1, MAX_EXPERTS, "model: num_experts")
        if not 1 <= self.top_k <= self.num_experts:
            raise InvalidInputError(
                f"model: top_k must lie in [1, num_experts], got {self.top_k} of {self.num_experts}"
            )
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InvalidInputError("model: layers must be ascending, without repeats, at least 1")
        if self.layers[0] < 0 or self.layers[-1] >= self.num_layers:
            raise InvalidInputError(
                f"model: layers must lie in [0, {self.num_layers}), "
                f"got {self.layers[0]} to {self.layers[-1]}"
            )

    def positions(self, length: int, field: str) -> Sequence[int]:
        """Where this model's ``layers`` are on a layer axis of ``length``.

        An axis holds all decoder layers (vLLM, SGLang) or only those that route (Megatron's replay
        list). Raises InvalidInputError, naming ``field``, for any other length.
        """
        if length == self.num_layers:
            return self.layers
        if length == len(self.layers):
            return range(length)
        routing = "which all route"
        if len(self.layers) < self.num_layers:
            routing = f"{len(self.layers)} of which route"
        raise InvalidInputError(
            f"{field}: the layer axis has {length} entries, but the model has {self.num_layers} "
            f"decoder layers, {routing}"
        )


def moe_model_from_config(config: Mapping[str, Any], field: str = "config") -> MoeModel:
    """The model that a Hugging Face ``config.json`` describes.

    Knows the ways in which transformers 5.23 says which layers are dense: ``mlp_layer_types``,
    ``moe_layers``, ``first_k_dense_replace`` with ``moe_layer_freq``, ``decoder_sparse_step`` with
    ``mlp_only_layers``, ``interleave_moe_layer_step``. Raises InvalidInputError naming what is
    missing or of another type.
    """
    inner = config.get("text_config", config)
    text = inner if isinstance(inner, Mapping) else config
    num_layers = _integer(text, ("num_hidden_layers",), field)
    check_range(num_layers, 1, MAX_LAYERS, f"{field}: num_hidden_layers")
    return MoeModel(
        _integer(text, _EXPERTS, field),
        _integer(text, _TOP_K, field),
        num_layers,
        tuple(layer for layer in range(num_layers) if _routes(text, layer, field)),
    )


def load_model(path: Path) -> MoeModel:
    """Read a ``config.json``; raises InvalidInputError if it is none."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise InvalidInputError(f"{path}: is no JSON") from None
    if not isinstance(config, Mapping):
        raise InvalidInputError(f"{path}: expected a JSON object")
    return moe_model_from_config(config, str(path))


def _integer(config: Mapping[str, Any], names: Sequence[str], field: str) -> int:
    for name in names:
        value = config.get(name)
        if type(value) is int:
            return value
    raise InvalidInputError(f"{field}: has none of {', '.join(names)} as an integer")


def _optional(config: Mapping[str, Any], name: str, default: _Value, field: str) -> _Value:
    """What is missing, null, 0 or empty is ``default``; all else must be of its type."""
    value = config.get(name) or default
    if not isinstance(value, type(default)):
        kind = "a list" if isinstance(default, list) else "an integer"
        raise InvalidInputError(f"{field}: {name}: expected {kind}, got {value!r:.80}")
    return value


def _routes(config: Mapping[str, Any], layer: int, field: str) -> bool:
    """Whether decoder layer ``layer`` has routed experts."""
    kinds, listed = config.get("mlp_layer_types"), config.get("moe_layers")
    if isinstance(kinds, list):
        return layer < len(kinds) and kinds[layer] == "sparse"
    if isinstance(listed, list):
        return layer in listed
    frequencies = config.get("moe_layer_freq")
    if isinstance(frequencies, list):
        return layer < len(frequencies) and bool(frequencies[layer])
    if layer < _optional(config, "first_k_dense_replace", 0, field):
        return False
    if layer % _optional(config, "moe_layer_freq", 1, field):
        return False
    if layer in _optional(config, "mlp_only_layers", [], field):
        return False
    step = _optional(config, "interleave_moe_layer_step", 1, field)
    return (layer + 1) % _optional(config, "decoder_sparse_step", step, field) == 0
