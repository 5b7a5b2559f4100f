"""Which layers are used next: promised to the engine in order, as far ahead as slots allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.client.rank import RankPlan
from foremoe.training.layout import GroupLayout
from foremoe.transfer.engine import TransferEngine


@dataclass(frozen=True, slots=True, eq=False)
class AgreedPlan:
    """A plan that all ranks hold; serving: bool ``[L, P, R]``, which replicas get tokens."""

    plan: RankPlan
    serving: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    agreed: AgreedPlan
    position: int


class Lookahead:
    """The coming uses of layers, in order; all ranks hold the same and advance at the same points.

    A use is promised as soon as the layer's last one has ended and there are slots for it. Among
    those for which that holds the first one wins, so that it never waits for a later one.
    """

    def __init__(self, engine: TransferEngine, layout: GroupLayout) -> None:
        self._engine = engine
        self._layout = layout
        self._coming: list[_Use] = []

    def add(self, agreed: AgreedPlan, positions: Sequence[int]) -> None:
        """After all others, the layers at ``positions`` will be used as planned."""
        self._coming += [_Use(agreed, position) for position in positions]
        self.advance()

    def advance(self) -> None:
        """Promise what has become possible."""
        with self._engine.together():
            self._coming = self._promise_possible()

    def _promise_possible(self) -> list[_Use]:
        """Returns the uses that must wait."""
        later = []
        for use in self._coming:
            layer = self._layout.layers[use.position]
            if self._engine.can_promise(layer):
                self._engine.promise(
                    layer,
                    self._layout.home[use.position],
                    use.agreed.plan.replica_expert[use.position],
                    use.agreed.serving[use.position],
                )
            else:
                later.append(use)
        return later

    def clear(self) -> None:
        """None of it will happen: drop what is promised and not in use."""
        self._coming = []
        self._engine.abandon()
