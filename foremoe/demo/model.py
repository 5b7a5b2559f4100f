"""The demo's model: a tiny Qwen3-MoE with random weights, expert-parallel over the ranks."""

from pathlib import Path

import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.distributed import DistributedConfig

from foremoe.demo.options import DemoOptions
from foremoe.demo.task import PADDING, VOCABULARY
from foremoe.integrations.transformers import NAME, register


def write_model(options: DemoOptions, folder: Path) -> None:
    """Save a freshly initialised model, the same for the same seed."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size,
        moe_intermediate_size=options.expert_size,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=options.hidden_size // 4,
        num_experts=options.experts,
        num_experts_per_tok=options.top_k,
        norm_topk_prob=True,
        max_position_embeddings=512,
        pad_token_id=PADDING,
        initializer_range=0.05,
    )
    torch.manual_seed(options.seed)
    model = Qwen3MoeForCausalLM(config)
    first_rank = options.experts // options.ranks
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(std=0.05)
            layer.mlp.gate.weight[:first_rank] *= options.router_skew
    model.to(getattr(torch, options.dtype)).save_pretrained(folder)


def load_model(options: DemoOptions, folder: Path) -> nn.Module:
    """Load it on this rank: dense layers by FSDP, experts by ForeMoE's expert parallelism."""
    register()
    model: nn.Module = Qwen3MoeForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, options.dtype),
        distributed_config=DistributedConfig(
            tp_size=1, fsdp_size=options.ranks, ep_size=options.ranks, ep_implementation=NAME
        ),
    )
    return model
