"""A rank's own experts of one layer: where their parameters and gradients live."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Parameters = Mapping[str, nn.Parameter | Sequence[nn.Parameter]]


@dataclass(slots=True, eq=False)
class HomeExperts:
    """The parameters of the experts that one rank owns in one layer.

    layer: global decoder layer id. parameters: name -> fused ``[E / P, ...]``, plain or DTensor
    whose local part is that shape, or one parameter per expert. experts: the global ids of the
    rows, ascending; they change when homes move. gradient_scale: what the trainer multiplies
    gradients by before they reach ``.grad`` (FSDP divides by the number of batches); applied to the
    replicas' gradients alike. module: whose state dict holds them.

    positions: the ids that the rows stand for by the model's own order: ``experts`` at first.
    in_order: whether all ranks' rows of the layer are what they stand for.
    """

    layer: int
    parameters: Parameters
    experts: tuple[int, ...]
    gradient_scale: float = 1.0
    module: nn.Module | None = None
    positions: tuple[int, ...] = field(init=False)
    in_order: bool = field(init=False)
    _row: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.positions = tuple(self.experts)
        self.hold(self.experts, in_order=True)

    def hold(self, experts: Sequence[int], in_order: bool) -> None:
        """From now on the rows are ``experts``, ascending."""
        self.experts = tuple(experts)
        self.in_order = in_order
        self._row = {expert: row for row, expert in enumerate(self.experts)}

    def weights(self, expert: int) -> dict[str, Tensor]:
        """The expert's current weights, detached, by name."""
        return self._weights_of(self._row[expert])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one expert's tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self._weights_of(0).items()}

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._weights_of(0).values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self._weights_of(0).values())).device

    def add_gradients(self, expert: int, replicas: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the replicas' weight gradients to the expert's own.

        They are summed in the order given, into the first, in their own dtype, float32 at least,
        and rounded once. They go where the trainer sums gradients: into ``main_grad`` (as Megatron
        calls it) if there is one, else into ``.grad``.
        """
        row = self._row[expert]
        for name, given in self.parameters.items():
            if isinstance(given, nn.Parameter):
                target = _gradient(given)[row]
            else:
                target = _gradient(given[row])
            total = replicas[0][name]
            for gradients in replicas[1:]:
                total.add_(gradients[name])
            own = target.to(total.dtype)
            own.add_(total, alpha=self.gradient_scale)
            if own is not target:
                target.copy_(own)

    def each_parameter(self) -> Iterator[nn.Parameter]:
        """All parameters, fused or not."""
        for given in self.parameters.values():
            yield from [given] if isinstance(given, nn.Parameter) else given

    def _weights_of(self, row: int) -> dict[str, Tensor]:
        return {
            name: local_part(given)[row]
            if isinstance(given, nn.Parameter)
            else local_part(given[row])
            for name, given in self.parameters.items()
        }


def _gradient(parameter: nn.Parameter) -> Tensor:
    """This rank's part of what the trainer sums gradients in; made if there is none."""
    total = getattr(parameter, "main_grad", None)
    if total is None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        total = parameter.grad
    return local_part(total)


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory, outside of autograd."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
