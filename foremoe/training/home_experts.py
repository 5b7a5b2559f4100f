"""A rank's own experts of one layer: where their parameters and gradients live."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True, eq=False)
class HomeExperts:
    """Fused parameters of the experts that one rank owns in one layer.

    layer: global decoder layer id. parameters: name -> ``[E / P, ...]``, plain or DTensor whose
    local part is that shape. experts: the global ids, ascending, of the rows.
    gradient_scale: what the trainer multiplies gradients by before they reach ``.grad`` (FSDP
    divides by the number of batches); applied to the replicas' gradients alike.
    """

    layer: int
    parameters: Mapping[str, torch.nn.Parameter]
    experts: tuple[int, ...]
    gradient_scale: float = 1.0
    _row: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._row.update({expert: row for row, expert in enumerate(self.experts)})

    def weights(self, expert: int) -> dict[str, Tensor]:
        """The expert's current weights, detached, by name."""
        row = self._row[expert]
        return {name: _local(p.detach())[row] for name, p in self.parameters.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one expert's tensors."""
        return {name: tuple(_local(p.detach()).shape[1:]) for name, p in self.parameters.items()}

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def add_gradients(self, expert: int, replicas: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the replicas' weight gradients, in the order given, to the expert's ``.grad``.

        They are summed in their own dtype, float32 at least, and rounded once.
        """
        row = self._row[expert]
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            target = _local(parameter.grad)[row]
            total = target.to(replicas[0][name].dtype)
            for gradients in replicas:
                total.add_(gradients[name], alpha=self.gradient_scale)
            if total is not target:
                target.copy_(total)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
