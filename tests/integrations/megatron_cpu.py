"""What Megatron-Core 0.16.1 lacks to run MoE layers on a CPU without Transformer Engine."""

from typing import Any

import torch


class _Stream:
    """Made by the alltoall dispatcher; never used without CUDA tensors."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


def prepare() -> None:
    """Patch this process; call after ``initialize_model_parallel``."""
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")  # the router moves its weight there
    cuda.Stream = _Stream
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # a NameError without Transformer Engine

    def splits_to_host(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if point == self.cuda_dtoh_point:
            for name in ("input_splits", "output_splits", "output_splits_tp"):
                value = getattr(self, name, None)
                if torch.is_tensor(value):
                    setattr(self, name, value.numpy())
        return tokens_per_expert

    MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize = splits_to_host
