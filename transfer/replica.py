"""A replica in use: what compute gets of a spare slot."""

from dataclasses import dataclass

from torch import Tensor

from foremoe.errors import TransferError
from foremoe.transfer.slots import SlotKey, SlotPool, SlotState


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """An expert in one of this rank's spare slots, until its layer is released or returned.

    weights: views of the slot, in the layout's shapes and dtype.
    gradients: float32 (float64) tensors, zero at first, that backward adds into; None where the
        replica was acquired without gradients.
    """

    slot: int
    expert: int
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor] | None
    _pool: SlotPool
    _key: SlotKey
    _use: int

    @classmethod
    def in_use(cls, pool: SlotPool, key: SlotKey, expert: int, with_gradients: bool) -> "Replica":
        """The replica in a slot that was just taken into use; zeroes its gradients."""
        gradients = pool.clean_gradients(key) if with_gradients else None
        return cls(key.slot, expert, pool.weight_views(key), gradients, pool, key, pool.uses(key))

    def check_held(self) -> None:
        """Raise TransferError unless the slot is still held for this use.

        For backward, which reads the weights that forward read and cannot let autograd keep them.
        """
        held = self._pool.state(self._key) is SlotState.IN_USE
        if not held or self._pool.uses(self._key) != self._use:
            raise TransferError(
                f"layer {self._key.layer} slot {self.slot}: expert {self.expert} was given up "
                "before backward; release the layer only after its backward"
            )
