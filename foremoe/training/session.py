"""A training rank's side of ForeMoE: plans in, agreement, copies ahead, gradients home, reports.

    with session.stage(step, Stage.UPDATE):
        for index, batch in enumerate(micro_batches):
            with session.micro_step(index):
                loss(model(batch)).backward()
        optimizer.step()
        session.weights_changed()

All ranks of the EP group run the same stages and micro-steps in the same order, as they must for
expert parallelism anyway. Whatever happens to the runtime, the numbers stay the same.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np
import torch.distributed as dist

from foremoe.client.rank import MicroStepReport, RankPlan
from foremoe.errors import InvalidInputError, TransferError
from foremoe.training.agreement import agree
from foremoe.training.expert_parallel import LayerWork
from foremoe.training.home_experts import HomeExperts
from foremoe.training.layout import GroupLayout
from foremoe.training.micro_step import MicroStepRecord, MicroStepRun
from foremoe.training.split_table import SplitTable
from foremoe.transfer.copies import Path
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.replica import Replica
from foremoe.vocabulary import DegradedReason, Stage

log = logging.getLogger(__name__)


class PlanSource(Protocol):
    """Where plans come from and reports go to; RankClient is the one that talks to the daemon."""

    @property
    def connected(self) -> bool: ...

    def wait(
        self, step: int, stage: Stage, micro_step: int, timeout_seconds: float
    ) -> RankPlan | None: ...

    def forget_before(self, step: int) -> None: ...

    def report(self, step: int, stage: Stage, micro_steps: Sequence[MicroStepReport]) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class StageRun:
    """The stage under way on this rank."""

    step: int
    stage: Stage
    balanced: bool
    records: list[MicroStepRecord] = field(default_factory=list)


class RankSession:
    """One per training rank and EP group; ``open_session`` builds it.

    group: the EP group that dispatches tokens. control_group: gloo, same ranks, for the agreement.
    client: None never balances. plan_wait_seconds: how long a micro-step may wait for its plan.
    """

    def __init__(
        self,
        layout: GroupLayout,
        homes: Sequence[HomeExperts],
        group: dist.ProcessGroup,
        control_group: dist.ProcessGroup,
        engine: TransferEngine,
        client: PlanSource | None,
        plan_wait_seconds: float = 1.0,
    ) -> None:
        self.layout = layout
        self.group = group
        self._homes = {home.layer: home for home in homes}
        self._control_group = control_group
        self._engine = engine
        self._client = client
        self._plan_wait_seconds = plan_wait_seconds
        self._tables = [SplitTable(layout.slots, layout.home[i]) for i in range(len(layout.layers))]
        self._stage: StageRun | None = None
        self._run: MicroStepRun | None = None
        self._promised: RankPlan | None = None
        self._failed = False
        engine.weights_changed()

    @contextmanager
    def stage(self, step: int, stage: Stage, *, balanced: bool = True) -> Iterator[StageRun]:
        """Run one stage of an RL step; ``balanced=False``, on all ranks alike, uses no plans."""
        if self._failed:
            raise TransferError(
                "an earlier micro-step failed on this rank; close the session and attach again"
            )
        if self._stage is not None:
            raise InvalidInputError(
                f"stage {self._stage.stage} of step {self._stage.step} is open; leave it first"
            )
        run = self._stage = StageRun(step, stage, balanced)
        try:
            yield run
        finally:
            self._stage = None
        if self._promised is not None:
            self._abandon()
        if self._client is not None and balanced:
            self._client.report(step, stage, [record.report() for record in run.records])
            self._client.forget_before(step)

    @contextmanager
    def micro_step(self, index: int) -> Iterator[MicroStepRecord]:
        """Run one micro-step: forward, and in the update stage backward too, inside the block."""
        if self._stage is None or self._run is not None:
            raise InvalidInputError("micro_step belongs inside one stage(...) block, one at a time")
        began = time.monotonic()
        run = self._run = self._begin(self._stage, index)
        try:
            yield run.record
            self._finish(run)
            run.record.seconds = time.monotonic() - began
        except BaseException:
            self._failed = True
            raise
        finally:
            self._run = None
        self._stage.records.append(run.record)

    def layer_work(self, layer: int) -> LayerWork:
        """What ``run_experts`` needs for one layer, now; also outside of any micro-step."""
        position = self.layout.position(layer)
        run = self._run
        if run is None or position in run.finished:
            # Also a second forward in a micro-step: the slots serve the next one already.
            return LayerWork.at_home(self.layout.slots, self._tables[position])
        table = self._tables[position]
        if run.plan is not None:
            table = SplitTable(
                self.layout.slots,
                self.layout.home[position],
                run.plan.replica_expert[position],
                run.plan.replica_tokens[position],
            )
        finish = partial(self._finish_layer, run, position)
        return LayerWork(
            self.layout.slots,
            table,
            acquire=partial(self._acquire, run, position),
            computed=partial(_count, run.record, position),
            forward_done=_nothing if self._backward_follows else finish,
            backward_done=finish if self._backward_follows else _nothing,
        )

    def weights_changed(self) -> None:
        """Every replica is void: call after each optimizer step, on all ranks, before more compute.

        Also after anything else that changes weights: loading a checkpoint, switching models.
        """
        if self._run is not None:
            raise InvalidInputError("weights_changed: leave the micro_step block first")
        if self._promised is not None:
            self._abandon()
        self._engine.weights_changed()

    def close(self) -> None:
        """End the background threads; do not compute with the attached model afterwards."""
        if self._client is not None:
            self._client.close()
        self._engine.close()

    def _begin(self, stage: StageRun, index: int) -> MicroStepRun:
        layers = len(self.layout.layers)
        record = MicroStepRecord(index, np.zeros(layers, np.int64), np.zeros(layers, np.float64))
        if not stage.balanced:
            return MicroStepRun(record, None, None)
        plan, upcoming, record.degraded_reason = self._agree(stage, index)
        record.balanced = plan is not None
        self._promised = upcoming
        return MicroStepRun(record, plan, upcoming)

    def _agree(self, stage: StageRun, index: int) -> tuple[RankPlan | None, RankPlan | None, str]:
        """Settle with the group the plan of this micro-step, and of the next one if it is there."""
        promised = self._promised
        if promised is not None and promised.micro_step != index:
            self._abandon()
            promised = None
        plan, reason = promised, ""
        if plan is None:
            plan, reason = self._plan(stage, index, self._plan_wait_seconds)
        upcoming, _ = self._plan(stage, index + 1, 0.0)
        if plan is None or (upcoming is not None and upcoming.mini_batch != plan.mini_batch):
            upcoming = None
        digests = [None if p is None else p.digest for p in (plan, upcoming)]
        now, next_too = agree(digests, self._control_group)
        if promised is None and not now:
            return None, None, reason or DegradedReason.OTHER_RANK
        if promised is None:
            assert plan is not None
            for position in range(len(self.layout.layers)):
                self._promise(plan, position)
        return plan, upcoming if next_too else None, ""

    def _plan(
        self, stage: StageRun, index: int, wait_seconds: float
    ) -> tuple[RankPlan | None, str]:
        if self._client is None:
            return None, DegradedReason.NO_RUNTIME
        if not self._client.connected:
            wait_seconds = 0.0
        plan = self._client.wait(stage.step, stage.stage, index, wait_seconds)
        if plan is None:
            connected = self._client.connected
            return None, DegradedReason.NO_PLAN if connected else DegradedReason.RUNTIME_LOST
        if not self.layout.fits(plan):
            return None, DegradedReason.OTHER_LAYOUT
        return plan, ""

    def _promise(self, plan: RankPlan, position: int) -> None:
        self._engine.promise(
            self.layout.layers[position],
            self.layout.home[position],
            plan.replica_expert[position],
        )

    def _acquire(self, run: MicroStepRun, position: int) -> Mapping[int, Replica]:
        """One layer's replicas by plan slot; the same when a checkpointed forward runs again."""
        if run.plan is None:
            return {}
        if position not in run.acquired:
            held = self._engine.acquire(
                self.layout.layers[position], with_gradients=self._backward_follows
            )
            by_expert = {replica.expert: replica for replica in held}
            wanted = run.plan.replica_expert[position, self.layout.rank]
            run.acquired[position] = {
                slot: by_expert[int(expert)] for slot, expert in enumerate(wanted) if expert >= 0
            }
        return run.acquired[position]

    def _finish_layer(self, run: MicroStepRun, position: int) -> None:
        """The layer needs its replicas no more: gradients go home, the next copies may come."""
        if run.plan is None or position in run.finished:
            return
        self._acquire(run, position)
        run.finished.add(position)
        if self._backward_follows:
            self._engine.return_gradients(self.layout.layers[position])
        else:
            self._engine.release(self.layout.layers[position])
        if run.upcoming is not None:
            self._promise(run.upcoming, position)

    @property
    def _backward_follows(self) -> bool:
        return self._stage is not None and self._stage.stage is Stage.UPDATE

    def _finish(self, run: MicroStepRun) -> None:
        for position in reversed(range(len(self.layout.layers))):
            self._finish_layer(run, position)
        if run.plan is None:
            return
        if self._backward_follows:
            returned = self._engine.collect_gradients()
            for (layer, expert), replicas in groupby(returned, lambda r: (r.layer, r.expert)):
                self._homes[layer].add_gradients(expert, [r.gradients for r in replicas])
        statistics = self._engine.statistics()
        run.record.exposed_seconds[:] = statistics.exposed_seconds
        run.record.exposed_gradient_seconds = statistics.exposed_gradient_seconds
        run.record.host_bytes = statistics.host_bytes
        run.record.peer_bytes = statistics.peer_bytes
        run.record.gradient_bytes = statistics.gradient_bytes
        run.record.host_copies = statistics.copies[Path.HOST]
        run.record.peer_copies = statistics.copies[Path.PEER]

    def _abandon(self) -> None:
        self._engine.abandon()
        self._promised = None


def _count(record: MicroStepRecord, position: int, pairs: int) -> None:
    record.computed_tokens[position] = pairs


def _nothing() -> None:
    return None
