"""No optimizer step without the gradients that replicas still hold."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from foremoe.training.home_experts import HomeExperts


class StepGuard:
    """Asks ``check`` before any optimizer of this process changes the experts' weights."""

    def __init__(self, homes: Sequence[HomeExperts], check: Callable[[], None]) -> None:
        """check: raises when gradients are missing; cheap, as every step calls it."""
        self._own = {id(parameter) for home in homes for parameter in home.each_parameter()}
        self._check = check
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def close(self) -> None:
        """Let optimizers step as they like."""
        self._hook.remove()

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if any(id(p) in self._own for group in optimizer.param_groups for p in group["params"]):
            self._check()
