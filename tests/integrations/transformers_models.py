"""Tiny random models of every supported family, as their own configurations make them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 40
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
_DENSE_FIRST = {"intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 3}
_GROUPED = {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}


@dataclass(frozen=True)
class Family:
    """model: prefix of the classes. layers: which decoder layers have experts."""

    model: str
    layers: tuple[int, int]
    options: dict[str, Any]

    def write(self, folder: Path) -> None:
        """A random model with nonzero biases, whose experts matter; saved for all ranks."""
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.model}Config")(**self.settings)
        model = self.kind(config)
        generator = torch.Generator().manual_seed(1)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "bias" in name or name.endswith("e_score_correction_bias"):
                tensor.data.normal_(std=0.1, generator=generator)
            elif ".experts." in name:
                tensor.data.mul_(10)
        model.save_pretrained(folder)

    @property
    def settings(self) -> dict[str, Any]:
        return _COMMON | self.options

    @property
    def kind(self) -> Any:
        return getattr(transformers, f"{self.model}ForCausalLM")

    def load(self, folder: Path, dtype: str, **options: Any) -> nn.Module:
        model: nn.Module = self.kind.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
        return model


FAMILIES = {
    "qwen3_moe": Family(
        "Qwen3Moe",
        (1, 2),
        {
            **_DENSE_FIRST,
            "mlp_only_layers": [0],
            "head_dim": 8,
            "num_experts": 8,
            "norm_topk_prob": True,
        },
    ),
    "mixtral": Family("Mixtral", (0, 1), {"num_hidden_layers": 2, "num_local_experts": 8}),
    "olmoe": Family("Olmoe", (0, 1), {"num_hidden_layers": 2, "num_experts": 8}),
    "deepseek_v3": Family(
        "DeepseekV3",
        (1, 2),
        {
            **_DENSE_FIRST,
            **_GROUPED,
            "num_key_value_heads": 4,
            "n_group": 2,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "glm4_moe": Family(
        "Glm4Moe",
        (1, 2),
        {**_DENSE_FIRST, **_GROUPED, "n_group": 1, "topk_group": 1, "head_dim": 8},
    ),
    "gpt_oss": Family(
        "GptOss",
        (0, 1),
        {"num_hidden_layers": 2, "num_local_experts": 8, "head_dim": 8, "sliding_window": 16},
    ),
}
