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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    InvalidInputError,
    NotReadyError,
    TransferError,
)
from foremoe.timeline.recorder import AGREEMENT
from foremoe.training.clock import MicroStepClock, Point
from foremoe.training.expert_parallel import LayerWork
from foremoe.training.home_experts import HomeExperts
from foremoe.training.home_mover import HomeMover
from foremoe.training.layout import GroupLayout
from foremoe.training.lookahead import AgreedPlan, Lookahead, Use
from foremoe.training.micro_step import MicroStepRecord
from foremoe.training.micro_step_run import MicroStepRun
from foremoe.training.plan_choice import PlanChoice, PlanSource
from foremoe.training.split_table import SplitTable
from foremoe.training.step_guard import StepGuard
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.schedule.links import NEVER
from foremoe.vocabulary import Stage

log = logging.getLogger(__name__)


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
        self._clock = MicroStepClock(len(layout.layers), engine.device)
        self._spans = engine.spans
        self._lay_out(layout)
        self._stage: StageRun | None = None
        self._run: MicroStepRun | None = None
        self._promised: AgreedPlan | None = None
        self._failed = False
        self._degraded_reason = ""
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
        dropped = sum(record.dropped_replicas for record in run.records)
        if dropped and self.layout.rank == 0:
            log.warning(
                "degraded: copies would be late: %d replicas were dropped in %s of step %d",
                dropped,
                stage,
                step,
            )
        if self._client is not None and balanced:
            self._client.report(step, stage, [record.report() for record in run.records])
            self._client.forget_before(step)

    @contextmanager
    def micro_step(self, index: int) -> Iterator[MicroStepRecord]:
        """Run one micro-step: forward, and in the update stage backward too, inside the block."""
        if self._stage is None or self._run is not None:
            raise InvalidInputError("micro_step belongs inside one stage(...) block, one at a time")
        now = self._stage
        with self._spans.micro_step(now.step, now.stage, now.balanced, index):
            yield from self._micro_step(now, index)

    def _micro_step(self, stage: StageRun, index: int) -> Iterator[MicroStepRecord]:
        began, began_unix_ns = time.monotonic(), time.time_ns()
        try:
            with self._spans.during(AGREEMENT):
                run = self._run = self._begin(stage, index)
            run.record.began_unix_ns = began_unix_ns
            yield run.record
            run.finish()
            run.record.seconds = time.monotonic() - began
        except BaseException:
            self._failed = True
            raise
        finally:
            self._run = None
        stage.records.append(run.record)

    def layer_work(self, layer: int) -> LayerWork:
        """What ``run_experts`` needs for one layer, now; also outside of any micro-step."""
        work = self._work(self.layout.position(layer))
        return replace(work, layer=layer, spans=self._spans) if self._spans.on else work

    def _work(self, position: int) -> LayerWork:
        planned = None if self._run is None else self._run.work(position)
        return planned or LayerWork.at_home(self.layout.slots, self._tables[position])

    def weights_changed(self) -> None:
        """Every replica is void: call after each optimizer step, on all ranks, before more compute.

        Also after anything else that changes weights: loading a checkpoint, switching models.
        """
        self._refuse_missing_gradients()
        if self._promised is not None:
            self._abandon()
        self._feed_back()
        self._engine.weights_changed()
        self._clock.restart()

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
                "move_homes: no optimizers were given, so an expert's state cannot move with it; "
                "attach with optimizers=[...]"
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
            self._clock.restart()
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
        self._spans.save()

    def _lay_out(self, layout: GroupLayout) -> None:
        self.layout = layout
        self._lookahead = Lookahead(self._engine, layout)
        self._tables = [SplitTable(layout.slots, row) for row in layout.home]

    def _follow_homes(self, step: int, stage: Stage) -> None:
        """Move experts to where the stage's plans expect them, if all ranks hold the first one."""
        home = self._choice.homes(step, stage)
        if home is None:
            return
        try:
            self.move_homes(home)
        except (ConflictError, ExhaustedError, InvalidInputError) as error:  # on all ranks alike
            log.warning(
                "degraded: homes stay, so step %d runs without plans: %s",
                step,
                error,
                extra={"fields": {"step": step, "stage": stage}},
            )

    @property
    def _choice(self) -> PlanChoice:
        return PlanChoice(self._client, self.layout, self._control_group, self._plan_wait_seconds)

    def _begin(self, stage: StageRun, index: int) -> MicroStepRun:
        layers = len(self.layout.layers)
        record = MicroStepRecord(index, np.zeros(layers, np.int64), np.zeros(layers, np.float64))
        agreed, upcoming = None, None
        if stage.balanced:
            agreed, upcoming = self._prepare(stage, record)
        return MicroStepRun(
            record,
            agreed,
            upcoming,
            self.layout,
            self._engine,
            self._lookahead,
            self._tables,
            self._clock,
            backward_follows=stage.stage is Stage.UPDATE,
        )

    def _prepare(
        self, stage: StageRun, record: MicroStepRecord
    ) -> tuple[AgreedPlan | None, AgreedPlan | None]:
        """Settle the plans of a micro-step and of the next one, and promise their replicas."""
        index = record.micro_step
        if self._promised is not None and self._promised.plan.micro_step != index:
            self._abandon()
        agreed, upcoming, record.degraded_reason = self._choice.settle(
            stage.step, stage.stage, index, self._promised
        )
        record.balanced = agreed is not None
        self._log_change(stage, record)
        self._clock.begin(stage.stage)
        if agreed is None:
            self._engine.return_gradients()
        elif agreed is not self._promised:
            self._lookahead.add(self._uses(stage.stage, agreed, 0), self._clock.now_ns)
        if upcoming is not None:
            self._lookahead.add(self._uses(stage.stage, upcoming, 1), self._clock.now_ns)
        self._promised = upcoming
        return agreed, upcoming

    def _log_change(self, stage: StageRun, record: MicroStepRecord) -> None:
        """Say when micro-steps begin to run without plans, for another reason, or with them."""
        reason = record.degraded_reason
        if reason == self._degraded_reason:
            return
        self._degraded_reason = reason
        where = {"step": stage.step, "stage": stage.stage, "micro_step": record.micro_step}
        log.log(
            logging.WARNING if reason else logging.INFO,
            "%s: from step %d %s micro-step %d on",
            f"degraded: no plans, {reason}" if reason else "balanced again",
            *where.values(),
            extra={"fields": where},
        )

    def _uses(self, stage: Stage, agreed: AgreedPlan, ahead: int) -> list[Use]:
        """In the order in which a micro-step, this one or one ``ahead``, uses layers' replicas.

        Slots that layers share are filled again for backward; a layer's own are kept until then.
        Backward cannot do without the replicas that forward had.
        """
        clock, forward = self._clock, range(len(self.layout.layers))
        uses = []
        for position in forward:
            due_ns = clock.due_ns(Point.FORWARD, position, ahead)
            worth_ns = clock.worth_ns(int(agreed.pairs[position].max(initial=0)))
            uses.append(Use(agreed, position, due_ns, min(due_ns + worth_ns, NEVER)))
        if stage is Stage.UPDATE and not self._engine.resident:
            for position in reversed(forward):
                uses.append(Use(agreed, position, clock.due_ns(Point.BACKWARD, position, ahead)))
        return uses

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
        if self._run is not None:
            raise NotReadyError(
                "gradients of this micro-step are on their way home; leave the micro_step block "
                "before the optimizer step"
            )
        if self._engine.owing:
            raise NotReadyError(
                "the schedule has more micro-steps of this mini-batch, so gradients are still "
                "with replicas; run them, or leave the stage block, before the optimizer step"
            )

    def _feed_back(self) -> None:
        """Let all ranks choose paths and drop copies by what the group measured since last time."""
        speed, took = self._engine.measured_speed(), self._clock.take()
        mine = np.concatenate([[speed.host, speed.peer, speed.network], took.ravel()])
        gathered = torch.empty(self.layout.topology.ranks, mine.size, dtype=torch.float64)
        dist.all_gather(list(gathered), torch.from_numpy(mine), group=self._control_group)
        measured = gathered.numpy()
        self._engine.apply_speed([PathSpeed(*row) for row in measured[:, :3].tolist()])
        self._clock.settle(list(measured[:, 3:].reshape(-1, *took.shape)))

    def _abandon(self) -> None:
        self._lookahead.clear()
        self._promised = None
