"""A replica in use: what compute gets of a spare slot."""

from dataclasses import dataclass

from torch import Tensor

from foremoe.errors import TransferError
from foremoe.transfer.content import Content
from foremoe.transfer.slots import SlotPool, SlotState


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """An expert in one of this rank's spare slots, until its layer is released.

    weights: views of the slot, in the layout's shapes and dtype.
    gradients: float32 (float64) tensors that backward adds into; None where the replica was
        acquired without gradients or gets no tokens.
    """

    content: Content
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor] | None
    _pool: SlotPool
    _slot: int
    _use: int

    @classmethod
    def in_use(
        cls, pool: SlotPool, slot: int, content: Content, gradients: dict[str, Tensor] | None
    ) -> "Replica":
        """The replica in a slot that was just taken into use."""
        return cls(content, pool.weight_views(slot), gradients, pool, slot, pool.uses(slot))

    @property
    def expert(self) -> int:
        return self.content.expert

    def check_held(self, promised: Content) -> None:
        """Raise unless the slot is still held for this use and holds ``promised``.

        For backward, which reads the weights that forward read and cannot let autograd keep them.
        Raises TransferError when the slot was given up, else as ``SlotPool.check``.
        """
        held = self._pool.state(self._slot) is SlotState.IN_USE
        if not held or self._pool.uses(self._slot) != self._use:
            raise TransferError(
                f"{promised}: its slot {self._slot} was given up before backward; release the "
                "layer only after its backward"
            )
        self._pool.check(self._slot, promised)
