"""R2 and R3: where the routing of each stage comes from, and its way into a micro-batch.

routing = StageReplay(replay, R3, group=ep_group)
with routing.micro_step(Stage.RECOMPUTE, rows, tokens, rollout):
    log_probs(model, batch)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.errors import InvalidInputError, UnknownError
from foremoe.foresight.routing import FaultKind, Routing, Row
from foremoe.routing.replay import LIVE, NO_EXPERT, RoutingReplay
from foremoe.vocabulary import Stage


class RoutingSource(StrEnum):
    """Who chooses the experts in a stage."""

    LIVE = "live"  # the router itself
    RECORD = "record"  # the router itself, and the stage's routing is kept
    RECORDED = "recorded"  # what was kept
    ROLLOUT = "rollout"  # what the rollout engine chose


@dataclass(frozen=True, slots=True)
class ReplayMode:
    """A source for each training stage."""

    recompute: RoutingSource
    update: RoutingSource

    def source(self, stage: Stage) -> RoutingSource:
        """Who chooses in ``stage``."""
        return self.recompute if stage is Stage.RECOMPUTE else self.update


OFF = ReplayMode(RoutingSource.LIVE, RoutingSource.LIVE)
R2 = ReplayMode(RoutingSource.RECORD, RoutingSource.RECORDED)
R3 = ReplayMode(RoutingSource.ROLLOUT, RoutingSource.ROLLOUT)


class StageReplay:
    """Replays by stage and sequence, whichever way a stage packs sequences into micro-batches."""

    def __init__(
        self, replay: RoutingReplay, mode: ReplayMode, *, group: dist.ProcessGroup | None = None
    ) -> None:
        """group: ranks that judge ``replay.mismatch`` together, if it is set; gloo for CPU."""
        self.replay = replay
        self.mode = mode
        self._group = group
        self._recorded: dict[str, Tensor] = {}

    @contextmanager
    def micro_step(
        self,
        stage: Stage,
        rows: Mapping[str, Tensor],
        tokens: int,
        rollout: Mapping[str, Routing] | None = None,
    ) -> Iterator[None]:
        """Route the forward pass inside as the stage's source says.

        rows: int64 positions of each sequence's tokens, in order, among the ``tokens`` rows that
        reach the routers; rows of no sequence are padding and go to no expert. rollout: needed by
        the source ROLLOUT. Tokens whose experts nobody recorded (the last one of a sequence, say)
        are routed live. Raises UnknownError for a sequence without routing, InvalidInputError for
        one that does not fit, and when ``replay.mismatch`` finds the routing misplaced.
        """
        source = self.mode.source(stage)
        if source in (RoutingSource.LIVE, RoutingSource.RECORD):
            with self.replay.record(_present(rows, tokens)) as recorded:
                yield
            if source is RoutingSource.RECORD:
                ids = recorded()
                self._recorded.update({name: ids[at.to(ids.device)] for name, at in rows.items()})
            return
        known = self._recorded if source is RoutingSource.RECORDED else self._ids(rollout, rows)
        with self.replay.replay(self._assembled(known, rows, tokens), rows):
            yield
        if self.replay.mismatch is not None:
            self.replay.mismatch.check(self._group)

    def forget(self) -> None:
        """Drop the recorded routing; call at the end of a step."""
        self._recorded.clear()

    def _ids(
        self, rollout: Mapping[str, Routing] | None, rows: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        given = rollout or {}
        return {
            name: replay_ids(given[name].select(self.replay.layers), len(at))
            for name, at in rows.items()
            if name in given
        }

    def _assembled(
        self, known: Mapping[str, Tensor], rows: Mapping[str, Tensor], tokens: int
    ) -> Tensor:
        """Expert ids ``[tokens, L, K]`` of a micro-batch."""
        shape = (tokens, len(self.replay.layers), self.replay.top_k)
        ids = torch.full(shape, NO_EXPERT, dtype=torch.int64)
        for name, at in rows.items():
            if name not in known:
                raise UnknownError(f"replay: no routing of sequence {name!r} is known")
            if known[name].shape != (len(at), *shape[1:]):
                raise InvalidInputError(
                    f"replay: sequence {name!r} has {len(at)} tokens here, but routing "
                    f"{list(known[name].shape)} for layers {self.replay.layers}"
                )
            ids = ids.to(at.device)
            ids[at] = known[name].to(ids)
        return ids


def replay_ids(routing: Routing, tokens: int) -> Tensor:
    """What to replay for a sequence of ``tokens`` tokens: int64 ``[tokens, L, K]``.

    Tokens that the routing does not cover are LIVE. Raises InvalidInputError when it has rows that
    the sequence has not, or lost a layer.
    """
    for fault in routing.faults:
        if fault.kind in (FaultKind.LAYER_NOT_CAPTURED, FaultKind.NOTHING_CAPTURED):
            raise InvalidInputError(f"replay: {fault}; mend the capture or train without replay")
    end = routing.start + len(routing.ids)
    if end > tokens:
        raise InvalidInputError(
            f"replay: sequence {routing.sequence!r} has {tokens} tokens, but its routing has rows "
            f"{routing.start} to {end - 1}"
        )
    ids = np.full((tokens, *routing.ids.shape[1:]), LIVE, np.int64)
    present = routing.rows == Row.PRESENT
    ids[routing.start : end][present] = routing.ids[present]
    return torch.from_numpy(ids)


def _present(rows: Mapping[str, Tensor], tokens: int) -> Tensor:
    """Which of the rows are tokens of a sequence: bool ``[tokens]``."""
    positions = list(rows.values())
    device = positions[0].device if positions else None
    present = torch.zeros(tokens, dtype=torch.bool, device=device)
    for at in positions:
        present[at] = True
    return present
