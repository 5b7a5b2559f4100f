"""A rank's means to move homes, and its guard over what else takes experts by position.

State dicts, checkpoints and weight updates for rollout engines read experts by their position in
the parameters: rank by rank, row by row, as the model was built. While homes are others, taking or
loading a state dict is refused, also after the session has ended.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from foremoe.errors import InvalidInputError
from foremoe.training.home_experts import HomeExperts
from foremoe.training.home_moves import move_experts


class HomeMover:
    """One per session that may move homes; all ranks call it alike."""

    def __init__(
        self,
        homes: Sequence[HomeExperts],
        optimizers: Sequence[Optimizer],
        home: NDArray[np.int32],
        in_order: NDArray[np.int32],
        group: dist.ProcessGroup,
        staging_bytes: int,
        wait_seconds: float,
    ) -> None:
        """homes: by layer row. optimizers: all that hold state of them.

        home: int32 ``[L, E]`` now; in_order: those by the model's own order. staging_bytes,
        wait_seconds: as ``move_experts`` takes them.
        """
        self.home = home
        self.in_order = in_order
        self._homes = homes
        self._optimizers = optimizers
        self._group = group
        self._staging_bytes = staging_bytes
        self._wait_seconds = wait_seconds
        self._modules = {id(m): m for one in homes if (m := one.module) is not None}.values()
        guards = [module.register_state_dict_pre_hook(self._check) for module in self._modules]
        guards += [m.register_load_state_dict_pre_hook(self._check) for m in self._modules]
        guards += [one.register_state_dict_pre_hook(self._check) for one in optimizers]
        guards += [one.register_load_state_dict_pre_hook(self._check) for one in optimizers]
        self._guards = guards

    def move(self, home: NDArray[np.int32]) -> int:
        """Bring every expert to its place in ``home [L, E]``; how many moved, in the whole group.

        Raises as ``move_experts`` does.
        """
        for module in self._modules:
            for part in module.modules():
                if isinstance(part, FSDPModule):  # an unsharded copy would go on with old weights
                    part.reshard()
        moved = move_experts(
            self._homes,
            self._optimizers,
            self.home,
            home,
            self._group,
            self._staging_bytes,
            self._wait_seconds,
        )
        self.home = home.copy()
        for one, row, ordered in zip(self._homes, home, self.in_order, strict=True):
            owned = np.flatnonzero(row == self._group.rank()).tolist()
            one.hold(owned, in_order=np.array_equal(row, ordered))
        return moved

    def close(self) -> None:
        """Take the guards away, if nothing is left to guard."""
        if np.array_equal(self.home, self.in_order):
            for guard in self._guards:
                guard.remove()

    def _check(self, *_: Any) -> None:
        if not all(one.in_order for one in self._homes):
            raise InvalidInputError(
                "state_dict: experts have moved, so positions in the parameters are not logical "
                "experts; take or load it inside `with session.homes_in_order():`"
            )
