"""A tiny decoder of torchtitan's own parts, divided over ranks by its own code.

It has no attention, which would need a compiler (flex) or CUDA (varlen); ForeMoE does not touch it.
"""

from dataclasses import dataclass
from typing import Any

import spmd_types as spmd
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.config import OverrideConfig, apply_overrides
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.activation_checkpoint import ActivationCheckpointing
from torchtitan.distributed.fsdp import apply_fsdp_to_decoder
from torchtitan.models.common.config_utils import (
    make_moe_config,
    make_routed_experts_config,
    make_router_config,
)
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.decoder_sharding import norm_config, set_decoder_sharding_config
from torchtitan.models.common.embedding import Embedding
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.moe import MoE
from torchtitan.models.common.moe_sharding import set_moe_sharding_config
from torchtitan.models.common.nn_modules import RMSNorm
from torchtitan.models.gpt_oss.moe import GptOssGroupedExperts
from torchtitan.protocols.module import Module

from tests.training.dense import Case

HIDDEN, EXPERT_SIZE, VOCABULARY = 32, 16, 40
OVERRIDES = ("foremoe.integrations.torchtitan.dispatcher",)

_PARAMETERS = {
    False: {"w1_EFD": spmd.S(1), "w2_EDF": spmd.S(2), "w3_EFD": spmd.S(1)},
    True: {
        "mlp1_weight_EGD": spmd.S(1),
        "mlp1_bias_EG": spmd.S(1),
        "mlp2_weight_EDF": spmd.S(2),
        "mlp2_bias_ED": spmd.R,
    },
}


class Block(Module):
    """A MoE layer with its residual, or nothing."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        ffn_norm: RMSNorm.Config
        moe: MoE.Config | None
        attention: None = None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.moe_enabled = config.moe is not None
        if config.moe is not None:
            self.ffn_norm = config.ffn_norm.build()
            self.moe = config.moe.build()

    def forward(self, x: Tensor, attention_masks: Any, positions: Any) -> Tensor:
        del attention_masks, positions
        return x + self.moe(self.ffn_norm(x)) if self.moe_enabled else x


def build(
    case: Case,
    meshes: ParallelDims,
    *,
    gpt_oss: bool = False,
    overrides: tuple[str, ...] = OVERRIDES,
    score_func: str = "softmax",
    checkpointing: type[ActivationCheckpointing] | None = None,
) -> nn.Module:
    """A decoder with the case's MoE layers among others, which are empty."""
    config = _config(case, gpt_oss, score_func)
    if overrides:
        apply_overrides(OverrideConfig(imports=list(overrides)), config)
    model: Any = config.build()
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        parameter.data.normal_(std=0.3, generator=generator)
    for name, buffer in model.named_buffers():
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        buffer.normal_(std=0.1 if "bias" in name else 0.0, generator=generator)
    model.parallelize(meshes)
    if checkpointing is not None:
        checkpointing.Config().build().apply(model)
    replicated = ["dp_replicate"] if meshes.dp_replicate_enabled else []
    apply_fsdp_to_decoder(
        model,
        meshes.get_mesh([*replicated, "fsdp"]),
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.float32,
        pp_enabled=False,
        ep_degree=meshes.ep,
        edp_mesh=meshes.get_optional_mesh([*replicated, "efsdp"]),
    )
    for module in model.modules():
        if isinstance(module, FSDPModule):  # gloo cannot scale while it reduces
            module.set_force_sum_reduction_for_comms(True)
    return model


def _config(case: Case, gpt_oss: bool, score_func: Any) -> Any:
    moe = make_moe_config(
        num_experts=case.experts,
        router=make_router_config(
            dim=HIDDEN,
            num_experts=case.experts,
            gate_param_init={},
            top_k=case.top_k,
            route_norm=True,
            route_scale=2.5,
            score_func=score_func,
        ),
        routed_experts=make_routed_experts_config(
            dim=HIDDEN,
            hidden_dim=EXPERT_SIZE,
            num_experts=case.experts,
            top_k=case.top_k,
            param_init={},
            comm_backend="standard",
        ),
    )
    if gpt_oss:
        moe.routed_experts.inner_experts = GptOssGroupedExperts.Config(
            dim=HIDDEN, hidden_dim=EXPERT_SIZE, num_experts=case.experts
        )
    set_moe_sharding_config(
        moe, enable_ep=True, enable_sp=True, expert_param_layout=_PARAMETERS[gpt_oss]
    )
    norm = RMSNorm.Config(normalized_shape=HIDDEN, sharding_config=norm_config(enable_sp=True))
    config = Decoder.Config(
        dim=HIDDEN,
        vocab_size=VOCABULARY,
        tok_embeddings=Embedding.Config(num_embeddings=VOCABULARY, embedding_dim=HIDDEN),
        norm=RMSNorm.Config(normalized_shape=HIDDEN),
        lm_head=Linear.Config(in_features=HIDDEN, out_features=VOCABULARY),
        layers=[
            Block.Config(ffn_norm=norm, moe=moe if layer in case.layer_ids else None)
            for layer in range(max(case.layer_ids) + 1)
        ],
    )
    set_decoder_sharding_config(config, enable_sp=True)
    return config
