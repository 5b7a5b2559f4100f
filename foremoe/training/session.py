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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from foremoe.client.rank import MicroStepReport, RankPlan
from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    InvalidInputError,
    NotReadyError,
    TransferError,
)
from foremoe.training.agreement import agree
from foremoe.training.expert_parallel import LayerWork
from foremoe.training.home_experts import HomeExperts
from foremoe.training.home_mover import HomeMover
from foremoe.training.layout import GroupLayout
from foremoe.training.lookahead import AgreedPlan, Lookahead
from foremoe.training.micro_step import MicroStepRecord, MicroStepRun
from foremoe.training.split_table import SplitTable
from foremoe.training.step_guard import StepGuard
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.paths import PathSpeed
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

    def homes_moved(self, home: NDArray[np.int32]) -> None: ...

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
    mover: None keeps homes as they are; with it, a stage begins with moves to its plans' homes.
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
        mover: HomeMover | None = None,
    ) -> None:
        self.group = group
        self._control_group = control_group
        self._engine = engine
        self._client = client
        self._plan_wait_seconds = plan_wait_seconds
        self._mover = mover
        self._lay_out(layout)
        self._stage: StageRun | None = None
        self._run: MicroStepRun | None = None
        self._promised: AgreedPlan | None = None
        self._failed = False
        self._guard = StepGuard(homes, self._refuse_missing_gradients)
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
        if balanced and self._mover is not None:
            self._follow_homes(step, stage)
        run = self._stage = StageRun(step, stage, balanced)
        try:
            yield run
            self._bring_gradients_home(run)
        except BaseException:
            self._failed |= self._engine.owing
            raise
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
        if run is None or not run.is_planned_forward(position):
            return LayerWork.at_home(self.layout.slots, self._tables[position])
        table = self._tables[position]
        if run.agreed is not None:
            table = SplitTable(
                self.layout.slots,
                self.layout.home[position],
                run.agreed.plan.replica_expert[position],
                run.agreed.plan.replica_tokens[position],
            )
        return LayerWork(
            self.layout.slots,
            table,
            acquire=partial(self._acquire, run, position),
            computed=partial(_count, run.record, position),
            forward_done=partial(self._end_forward, run, position),
            backward_done=partial(self._end_layer, run, position),
        )

    def weights_changed(self) -> None:
        """Every replica is void: call after each optimizer step, on all ranks, before more compute.

        Also after anything else that changes weights: loading a checkpoint, switching models.
        """
        if self._run is not None:
            raise InvalidInputError("weights_changed: leave the micro_step block first")
        self._refuse_missing_gradients()
        if self._promised is not None:
            self._abandon()
        self._feed_back_speed()
        self._engine.weights_changed()

    def move_homes(self, home: NDArray[np.int32]) -> int:
        """Make ``home [L, E]`` the experts' homes: they change ranks with their optimizer state.

        On all ranks, between stages, with gradients cleared. Returns how many experts moved, in the
        whole group. Raises as ``home_moves.move_experts`` does, and InvalidInputError for a session
        that was opened without optimizers.
        """
        if self._stage is not None:
            raise InvalidInputError("move_homes: leave the stage block first")
        if self._mover is None:
            raise InvalidInputError(
                "move_homes: this session does not know what belongs to an expert; open it with "
                "optimizers=[...]"
            )
        if not self._failed:  # else only to give the model back, its replicas are void
            self._refuse_missing_gradients()
            self._abandon()
        try:
            moved = self._mover.move(home)
        except TransferError:
            self._failed = True
            raise
        if moved:
            self._lay_out(replace(self.layout, home=self._mover.home))
            if not self._failed:
                self._engine.weights_changed(self.layout.home)
            if self._client is not None:
                self._client.homes_moved(self.layout.home)
        return moved

    @contextmanager
    def homes_in_order(self) -> Iterator[None]:
        """Inside, experts are where the model's own order has them; then they go back.

        On all ranks, for what reads or writes experts by position: state dicts of model and
        optimizer, checkpoints, weights for a rollout engine. Raises as ``move_homes`` does.
        """
        if self._mover is None:
            yield
            return
        home = self.layout.home
        self.move_homes(self._mover.in_order)
        try:
            yield
        finally:
            self.move_homes(home)

    def close(self) -> None:
        """End the background threads; do not compute with the attached model afterwards."""
        self._guard.close()
        if self._mover is not None:
            self._mover.close()
        if self._client is not None:
            self._client.close()
        self._engine.close()

    def _lay_out(self, layout: GroupLayout) -> None:
        self.layout = layout
        self._lookahead = Lookahead(self._engine, layout)
        self._tables = [SplitTable(layout.slots, row) for row in layout.home]

    def _follow_homes(self, step: int, stage: Stage) -> None:
        """Move experts to where the stage's plans expect them, if all ranks hold the first one."""
        plan = None
        if self._client is not None:
            wait_seconds = self._plan_wait_seconds if self._client.connected else 0.0
            plan = self._client.wait(step, stage, 0, wait_seconds)
        if plan is not None and not self.layout.serves(plan):
            plan = None
        (serving,) = agree([plan], self._slots_shape, self._control_group)
        if plan is None or serving is None or self.layout.fits(plan):
            return
        try:
            self.move_homes(plan.home)
        except (ConflictError, ExhaustedError, InvalidInputError) as error:  # on all ranks alike
            log.warning("degraded: homes stay, so step %d runs without plans: %s", step, error)

    @property
    def _slots_shape(self) -> tuple[int, int, int]:
        return len(self.layout.layers), self.layout.topology.ranks, self.layout.spare_slots

    def _begin(self, stage: StageRun, index: int) -> MicroStepRun:
        layers = len(self.layout.layers)
        record = MicroStepRecord(index, np.zeros(layers, np.int64), np.zeros(layers, np.float64))
        if not stage.balanced:
            return MicroStepRun(record, None, None)
        agreed, upcoming, record.degraded_reason = self._agree(stage, index)
        record.balanced = agreed is not None
        if agreed is None:
            self._engine.return_gradients()
        elif agreed is not self._promised:
            self._lookahead.add(agreed, self._uses)
        if upcoming is not None:
            self._lookahead.add(upcoming, self._uses)
        self._promised = upcoming
        return MicroStepRun(record, agreed, upcoming)

    def _agree(
        self, stage: StageRun, index: int
    ) -> tuple[AgreedPlan | None, AgreedPlan | None, str]:
        """Settle with the group the plan of this micro-step, and of the next one if it is there."""
        if self._promised is not None and self._promised.plan.micro_step != index:
            self._abandon()
        promised = self._promised
        plan, reason = (None, "") if promised is None else (promised.plan, "")
        if plan is None:
            plan, reason = self._plan(stage, index, self._plan_wait_seconds)
        upcoming, _ = self._plan(stage, index + 1, 0.0)
        if plan is None or (upcoming is not None and upcoming.mini_batch != plan.mini_batch):
            upcoming = None
        serving, serving_next = agree([plan, upcoming], self._slots_shape, self._control_group)
        if promised is None and plan is not None and serving is not None:
            promised = AgreedPlan(plan, serving)
        if promised is None:
            return None, None, reason or DegradedReason.OTHER_RANK
        if upcoming is None or serving_next is None:
            return promised, None, ""
        return promised, AgreedPlan(upcoming, serving_next), ""

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

    @property
    def _uses(self) -> list[int]:
        """Positions of layers in the order in which a micro-step uses their replicas.

        Slots that layers share are filled again for backward; a layer's own are kept until then.
        """
        forward = list(range(len(self.layout.layers)))
        return forward + (forward[::-1] if self._backward_fetches else [])

    @property
    def _backward_follows(self) -> bool:
        return self._stage is not None and self._stage.stage is Stage.UPDATE

    @property
    def _backward_fetches(self) -> bool:
        return self._backward_follows and not self._engine.resident

    def _acquire(self, run: MicroStepRun, position: int) -> Mapping[int, Replica]:
        """A layer's replicas by plan slot, the same until its use ends."""
        if run.agreed is None:
            return {}
        if position not in run.acquired:
            with_gradients = self._backward_follows and (
                self._engine.resident or position in run.forwarded
            )
            held = self._engine.acquire(self.layout.layers[position], with_gradients)
            by_expert = {replica.expert: replica for replica in held}
            wanted = run.agreed.plan.replica_expert[position, self.layout.rank].tolist()
            run.acquired[position] = {
                slot: by_expert[expert] for slot, expert in enumerate(wanted) if expert in by_expert
            }
        return run.acquired[position]

    def _end_forward(self, run: MicroStepRun, position: int) -> None:
        """Shared slots go to the next layer; those of the layer itself wait for backward."""
        if position in run.forwarded:
            return
        if run.agreed is not None and self._backward_fetches:
            self._acquire(run, position)
            self._engine.release(self.layout.layers[position])
            del run.acquired[position]
            self._lookahead.advance()
        run.forwarded.add(position)
        if not self._backward_follows:
            self._end_layer(run, position)

    def _end_layer(self, run: MicroStepRun, position: int) -> None:
        """The layer needs its replicas no more; the next copies may come.

        Their gradients stay where they are if the next micro-step adds to them.
        """
        if run.agreed is None or position in run.finished:
            return
        layer = self.layout.layers[position]
        self._acquire(run, position)
        run.finished.add(position)
        self._engine.release(layer)
        if run.upcoming is None or not self._engine.resident:
            self._engine.return_gradients(layer)
        self._lookahead.advance()

    def _finish(self, run: MicroStepRun) -> None:
        """End what the model's code left out, on all ranks alike, and bring gradients home."""
        layers = range(len(self.layout.layers))
        for position in layers:
            self._end_forward(run, position)
        for position in reversed(layers):
            self._end_layer(run, position)
        self._engine.collect_gradients()
        run.record.add(self._engine.statistics())

    def _bring_gradients_home(self, run: StageRun) -> None:
        """The stage ends in the middle of a mini-batch: the next one may be long in coming."""
        if self._engine.owing:
            self._engine.return_gradients()
            self._engine.collect_gradients()
            run.records[-1].add(self._engine.statistics())

    def _refuse_missing_gradients(self) -> None:
        if self._failed:
            raise TransferError(
                "a micro-step failed on this rank, so gradients of its mini-batch are missing; "
                "close the session, attach again and repeat the mini-batch from zero gradients"
            )
        if self._engine.owing:
            raise NotReadyError(
                "the schedule has more micro-steps of this mini-batch, so gradients are still "
                "with replicas; run them, or leave the stage block, before the optimizer step"
            )

    def _feed_back_speed(self) -> None:
        """Let all ranks choose paths by what the group has measured since the last call."""
        speed = self._engine.measured_speed()
        sent = torch.tensor([speed.host, speed.peer], dtype=torch.float64)
        gathered = [torch.empty_like(sent) for _ in range(self.layout.topology.ranks)]
        dist.all_gather(gathered, sent, group=self._control_group)
        self._engine.apply_speed([PathSpeed(*pair.tolist()) for pair in gathered])

    def _abandon(self) -> None:
        self._lookahead.clear()
        self._promised = None


def _count(record: MicroStepRecord, position: int, pairs: int) -> None:
    record.computed_tokens[position] = pairs
