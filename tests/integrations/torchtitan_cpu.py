"""What torchtitan 0.3.0 lacks to run MoE layers on a CPU, without Triton and a compiler."""

import sys
from typing import Any
from unittest import mock

import torch


def prepare() -> None:
    """Patch this process; call before anything of torchtitan is imported."""
    # Its own dispatcher of another kind has kernels in Triton.
    kernels = mock.MagicMock()
    sys.modules.setdefault("torchtitan.distributed.minimal_async_ep.kernels", kernels)
    with mock.patch.object(torch, "compile", _uncompiled):  # of attention, slow to import
        import torchtitan.models.common.config_utils  # noqa: F401
    from torchtitan.distributed import parallel_dims

    parallel_dims.device_type = "cpu"  # "cuda" where there is no device


def _uncompiled(function: Any = None, **_: Any) -> Any:
    return _uncompiled if function is None else function
