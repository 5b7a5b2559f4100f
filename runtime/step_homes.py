"""Where an EP group's experts live in one step: chosen once, for all of the step's stages."""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.step_homes import step_homes
from foremoe.rpc.registration import RankRegistration

Histograms = Sequence[Sequence[Sequence[NDArray[np.uint32]]]]


class StepHomes:
    """Chosen by the first worker that asks, from the stage that was scheduled first.

    Groups that do not move experts keep the homes they have.
    """

    def __init__(
        self,
        group: RankRegistration,
        home: NDArray[np.int32] | None,
        histograms: Histograms,
        rows: NDArray[np.int64],
    ) -> None:
        """home: int32 ``[L, E]``, where experts live so far; None for contiguous homes.

        histograms: of every sequence by micro-step and rank, uint32 ``[rows, E]``; rows: int64
        ``[L]``, the group's layers among them.
        """
        self._group = group
        self._home = home
        self._histograms: Histograms | None = histograms if group.moves_homes else None
        self._rows = rows
        self._lock = threading.Lock()

    def choose(self) -> NDArray[np.int32]:
        """The homes ``[L, E]``, the same at every call."""
        with self._lock:
            if self._home is None:
                layers, experts = len(self._group.layers), self._group.num_experts
                self._home = contiguous_homes(layers, experts, self._group.ranks)
            if self._histograms is not None:
                self._home = step_homes(
                    self._expert_tokens(self._histograms),
                    self._home,
                    self._group.ranks,
                    self._group.ranks_per_node,
                )
                self._histograms = None
            return self._home

    def _expert_tokens(self, histograms: Histograms) -> NDArray[np.int64]:
        """Pairs of every expert: int64 ``[M, L, E]``."""
        shape = len(histograms), len(self._group.layers), self._group.num_experts
        tokens = np.zeros(shape, np.int64)
        for micro_step, ranks in enumerate(histograms):
            for histogram in (histogram for sequences in ranks for histogram in sequences):
                tokens[micro_step] += histogram[self._rows]
        return tokens
