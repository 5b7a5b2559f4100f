"""A micro-step under way: when its layers take their replicas, and when they give them back."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch.autograd import Variable

from foremoe.errors import NotReadyError
from foremoe.training.clock import MicroStepClock, Point
from foremoe.training.expert_parallel import LayerWork
from foremoe.training.layout import GroupLayout
from foremoe.training.lookahead import AgreedPlan, Lookahead
from foremoe.training.micro_step import MicroStepRecord
from foremoe.training.split_table import SplitTable
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.replica import Replica
from foremoe.vocabulary import DegradedReason


class MicroStepRun:
    """Its agreed plan, None to compute at home, and the next one whose copies may start already.

    tables: by position of the layer, all experts at home. backward_follows: as in the update stage.
    Layers are named by their position in the layout.
    """

    def __init__(
        self,
        record: MicroStepRecord,
        agreed: AgreedPlan | None,
        upcoming: AgreedPlan | None,
        layout: GroupLayout,
        engine: TransferEngine,
        lookahead: Lookahead,
        tables: Sequence[SplitTable],
        clock: MicroStepClock,
        backward_follows: bool,
    ) -> None:
        self.record = record
        self._agreed = agreed
        self._upcoming = upcoming
        self._layout = layout
        self._engine = engine
        self._lookahead = lookahead
        self._tables = tables
        self._clock = clock
        self._backward_follows = backward_follows
        self._split: dict[int, SplitTable] = {}
        self._acquired: dict[int, Mapping[int, Replica]] = {}
        self._forwarded: set[int] = set()
        self._finished: set[int] = set()

    def work(self, position: int) -> LayerWork | None:
        """What ``run_experts`` needs for one layer now; None where the plan has no say.

        The plan is for a layer's first forward and its recomputation. Any other one computes at
        home: slots and gradients serve one forward and backward.
        """
        if position in self._finished or (position in self._forwarded and not _in_backward()):
            return None
        return LayerWork(
            self._layout.slots,
            self._table(position),
            acquire=partial(self._acquire, position),
            computed=partial(self._count, position),
            forward_done=partial(self._end_forward, position),
            backward_done=partial(self._end_layer, position),
        )

    def finish(self) -> None:
        """End what the model's code left out, on all ranks alike, and bring gradients home."""
        layers = range(len(self._layout.layers))
        for position in layers:
            self._end_forward(position)
        for position in reversed(layers):
            self._end_layer(position)
        if self._agreed is not None:
            self._clock.end(int(self.record.computed_tokens.sum()))
            self.record.dropped_replicas = self._agreed.dropped
            if self._agreed.dropped:
                self.record.degraded_reason = DegradedReason.LATE_COPIES
        self._engine.collect_gradients()
        self.record.add(self._engine.statistics())

    def _table(self, position: int) -> SplitTable:
        """The same whenever it is asked for: by the time of a recomputation more may be dropped."""
        if self._agreed is None:
            return self._tables[position]
        if position not in self._split:
            self._split[position] = SplitTable(
                self._layout.slots,
                self._layout.home[position],
                self._agreed.plan.replica_expert[position],
                self._agreed.quota(position),
            )
        return self._split[position]

    def _count(self, position: int, pairs: int) -> None:
        self.record.computed_tokens[position] = pairs

    def _acquire(self, position: int) -> Mapping[int, Replica]:
        """A layer's replicas by plan slot, the same until its use ends."""
        if self._agreed is None:
            return {}
        if position not in self._acquired:
            with_gradients = self._backward_follows and (
                self._engine.resident or position in self._forwarded
            )
            again = position in self._forwarded
            self._clock.reach(Point.BACKWARD if again else Point.FORWARD, position)
            try:
                held = self._engine.acquire(self._layout.layers[position], with_gradients)
            except NotReadyError as error:
                if self._engine.resident:
                    raise
                raise NotReadyError(
                    f"{error}; layers that share slots must be used in order, and in reverse by "
                    "backward: raise limit_bytes until each has its own, then any order goes"
                ) from error
            self._clock.resume()
            by_expert = {replica.expert: replica for replica in held}
            wanted = self._agreed.plan.replica_expert[position, self._layout.rank].tolist()
            self._acquired[position] = {
                slot: by_expert[expert] for slot, expert in enumerate(wanted) if expert in by_expert
            }
        return self._acquired[position]

    def _end_forward(self, position: int) -> None:
        """Shared slots go to the next layer; those of the layer itself wait for backward."""
        if position in self._forwarded:
            return
        if self._agreed is not None:
            self._acquire(position)
            self._clock.reach(Point.FORWARD_DONE, position)
            if self._backward_follows and not self._engine.resident:
                self._engine.release(self._layout.layers[position])
                del self._acquired[position]
                self._lookahead.advance(self._clock.now_ns)
        self._forwarded.add(position)
        if not self._backward_follows:
            self._end_layer(position)

    def _end_layer(self, position: int) -> None:
        """The layer needs its replicas no more; the next copies may come.

        Gradients stay where they are if the next micro-step adds to them, the others go home now.
        """
        if self._agreed is None or position in self._finished:
            return
        layer = self._layout.layers[position]
        self._acquire(position)
        if self._backward_follows:
            self._clock.reach(Point.BACKWARD_DONE, position)
        self._finished.add(position)
        self._engine.release(layer)
        staying = None
        if self._upcoming is not None and self._engine.resident:
            staying = self._upcoming.serving(position)
        self._engine.return_gradients(layer, staying)
        self._lookahead.advance(self._clock.now_ns)
        if len(self._finished) == len(self._layout.layers) and _in_backward():
            # After a backward through all layers whatever reads gradients next finds them home.
            Variable._execution_engine.queue_callback(self._engine.collect_gradients)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
