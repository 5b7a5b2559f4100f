"""All that belongs to a rank's experts of one layer: parameters and optimizer state, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from foremoe.errors import InvalidInputError
from foremoe.training.home_experts import Parameters, local_part

Signature = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ExpertState:
    """What moves with an expert, and what its layer's experts have in common.

    rows: name -> one tensor per expert in row order, sharing memory with the parameter
        (``down``) or the optimizer's state of it (``down.exp_avg``).
    common: name -> value that a fused parameter has once for all its experts (``down.step``); ranks
        must hold the same before experts may change between them.
    """

    layer: int
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    common: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(
        cls, layer: int, parameters: Parameters, optimizers: Sequence[Optimizer]
    ) -> "ExpertState":
        """Find everything. ``parameters``: name -> fused ``[E / P, ...]``, or one per expert.

        Optimizer state is what lies in ``optimizer.state`` for these parameters. Of a fused one,
        tensors of its shape are split by expert, numbers and 0-dim tensors are common; of an
        expert's own, all belongs to the expert.

        Raises InvalidInputError for state that cannot be told apart by expert or is not in the
        optimizers, rows that are not contiguous, and gradients that have not been cleared.
        """
        check_optimizers(layer, parameters, optimizers)
        state = cls(layer)
        for name, given in parameters.items():
            if isinstance(given, nn.Parameter):
                state._add_fused(name, given, optimizers)
            else:
                state._add_single(name, given, optimizers)
        for name, rows in state.rows.items():
            if not all(row.is_contiguous() for row in rows):
                raise InvalidInputError(f"layer {layer}: {name} is not contiguous expert by expert")
        return state

    def signature(self) -> Signature:
        """Name, dtype and shape of each of an expert's tensors; ranks that trade must have one."""
        return tuple(
            (name, str(rows[0].dtype), tuple(rows[0].shape))
            for name, rows in sorted(self.rows.items())
        )

    def tensors(self, row: int) -> list[Tensor]:
        """One expert's tensors, in the order of ``signature``."""
        return [rows[row] for _, rows in sorted(self.rows.items())]

    def _add_fused(
        self, name: str, parameter: nn.Parameter, optimizers: Sequence[Optimizer]
    ) -> None:
        self._check_cleared(name, parameter)
        local = local_part(parameter)
        self.rows[name] = list(local.unbind(0))
        for key, value in _optimizer_state(parameter, optimizers).items():
            part = local_part(value) if isinstance(value, Tensor) else None
            if part is None or part.ndim == 0:
                self.common[f"{name}.{key}"] = value if part is None else part.item()
            elif part.shape == local.shape:
                self.rows[f"{name}.{key}"] = list(part.unbind(0))
            else:
                raise InvalidInputError(
                    f"layer {self.layer}: optimizer state {key} {list(part.shape)} of {name} "
                    f"{list(local.shape)} cannot be told apart by expert; keep homes fixed with "
                    "this optimizer"
                )

    def _add_single(
        self, name: str, parameters: Sequence[nn.Parameter], optimizers: Sequence[Optimizer]
    ) -> None:
        self.rows[name] = [local_part(parameter) for parameter in parameters]
        states = [_optimizer_state(parameter, optimizers) for parameter in parameters]
        for parameter in parameters:
            self._check_cleared(name, parameter)
        keys = {tuple(sorted(state)) for state in states}
        if len(keys) > 1:
            raise InvalidInputError(
                f"layer {self.layer}: some experts' {name} have optimizer state and others have "
                "not; take an optimizer step with a gradient for every expert first"
            )
        for key in keys.pop():
            values = [state[key] for state in states]
            if all(isinstance(value, Tensor) for value in values):
                self.rows[f"{name}.{key}"] = [local_part(value) for value in values]
            elif any(value != values[0] for value in values):
                raise InvalidInputError(
                    f"layer {self.layer}: optimizer state {key} of {name} is {values} and cannot "
                    "move; it must be a tensor, or the same for all experts"
                )
            else:
                self.common[f"{name}.{key}"] = values[0]

    def _check_cleared(self, name: str, parameter: nn.Parameter) -> None:
        for gradient in (parameter.grad, getattr(parameter, "main_grad", None)):
            if gradient is not None and bool(local_part(gradient).any()):
                raise InvalidInputError(
                    f"layer {self.layer}: {name} has a gradient, which would go to other experts; "
                    "take the optimizer step and zero_grad() before homes move"
                )


def check_optimizers(layer: int, parameters: Parameters, optimizers: Sequence[Optimizer]) -> None:
    """Raise InvalidInputError unless the optimizers hold all of an expert's trained parameters.

    Those of an optimizer that keeps copies of its own (in float32, say) would not move.
    """
    held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    for name, given in parameters.items():
        for parameter in [given] if isinstance(given, nn.Parameter) else given:
            if parameter.requires_grad and id(parameter) not in held:
                raise InvalidInputError(
                    f"layer {layer}: none of the optimizers given holds {name}, so its state "
                    "could not move along; give the one that steps it, or keep homes fixed"
                )


def _optimizer_state(parameter: nn.Parameter, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What the optimizers hold for a parameter; nothing before their first step."""
    return {
        f"{key} of optimizer {number}" if number else key: value
        for number, optimizer in enumerate(optimizers)
        for key, value in optimizer.state.get(parameter, {}).items()
    }
