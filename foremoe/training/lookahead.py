"""Which layers are used next: promised to the engine in order, as far ahead as slots allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.client.rank import RankPlan
from foremoe.training.layout import GroupLayout
from foremoe.transfer.copies import EMPTY, held
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.schedule.links import NEVER
from foremoe.transfer.schedule.timetable import CopyWindow


@dataclass(slots=True, eq=False)
class AgreedPlan:
    """A plan that all ranks hold.

    pairs: int64 ``[L, P, R]``, about how many pairs each replica gets from all ranks; 0 once it is
    dropped. dropped: how many replicas were, of the whole group.
    """

    plan: RankPlan
    pairs: NDArray[np.int64]
    dropped: int = 0

    def quota(self, position: int) -> NDArray[np.int64]:
        """This rank's pairs for each replica of a layer that is still there: int64 ``[P, R]``."""
        tokens = self.plan.replica_tokens[position]
        return np.where(self.pairs[position] > 0, tokens, 0)

    def serving(self, position: int) -> NDArray[np.int32]:
        """The experts of a layer's replicas that get pairs: int32 ``[P, R]``, -1 for none."""
        experts = self.plan.replica_expert[position]
        return np.where(self.pairs[position] > 0, experts, np.int32(EMPTY))

    def keep(self, position: int, placement: NDArray[np.int32]) -> None:
        """Of a layer's replicas only those in ``placement [P, R]`` can be used."""
        kept = held(self.plan.replica_expert[position], placement)
        self.dropped += int(np.count_nonzero((self.pairs[position] > 0) & ~kept))
        self.pairs[position][~kept] = 0


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A layer's next use, by the group's estimate of time.

    deadline_ns: when compute needs the replicas. latest_ns: until when it rather waits for one.
    """

    agreed: AgreedPlan
    position: int
    deadline_ns: int = NEVER
    latest_ns: int = NEVER


class Lookahead:
    """The coming uses of layers, in order; all ranks hold the same and advance at the same points.

    A use is promised as soon as the layer's last one has ended and there are slots for it. Among
    those for which that holds the first one wins, so that it never waits for a later one.
    """

    def __init__(self, engine: TransferEngine, layout: GroupLayout) -> None:
        self._engine = engine
        self._layout = layout
        self._coming: list[Use] = []

    def add(self, uses: Sequence[Use], now_ns: int) -> None:
        """After all others, these will follow."""
        self._coming += uses
        self.advance(now_ns)

    def advance(self, now_ns: int) -> None:
        """Promise what has become possible; replicas whose copies cannot come in time are lost."""
        coming, self._coming = self._coming, []
        promised = []
        with self._engine.together():
            for use in coming:
                if self._engine.can_promise(self._layout.layers[use.position]):
                    self._promise(use, now_ns)
                    promised.append(use)
                else:
                    self._coming.append(use)
        for use in promised:
            placement = self._engine.placement(self._layout.layers[use.position])
            use.agreed.keep(use.position, placement)

    def _promise(self, use: Use, now_ns: int) -> None:
        self._engine.promise(
            self._layout.layers[use.position],
            self._layout.home[use.position],
            use.agreed.plan.replica_expert[use.position],
            use.agreed.pairs[use.position],
            CopyWindow(now_ns, max(now_ns, use.deadline_ns), use.latest_ns),
        )

    def clear(self) -> None:
        """None of it will happen: drop what is promised and not in use."""
        self._coming = []
        self._engine.abandon()
