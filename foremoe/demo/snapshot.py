"""Model and optimizer state kept aside, so that both runs of a step start from the same bytes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class Snapshot:
    """A copy of every parameter and optimizer tensor of this rank."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._tensors = _state(model, optimizer)
        self._saved = [tensor.clone() for tensor in self._tensors]

    def restore(self) -> None:
        """Put the state back, in place."""
        with torch.no_grad():
            for tensor, saved in zip(self._tensors, self._saved, strict=True):
                tensor.copy_(saved)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    for module in model.modules():
        if isinstance(module, FSDPModule):  # unsharded parameters are views that come and go
            module.reshard()
    tensors = [local(parameter.detach()) for parameter in model.parameters()]
    states: list[dict[str, Any]] = list(optimizer.state.values())
    for state in states:
        tensors += [local(value) for value in state.values() if isinstance(value, Tensor)]
    return tensors
