"""The policy ``resident``: plans a mini-batch over time, so that replicas stay and few are copied.

The first micro-step of a mini-batch is planned alone, as nothing is resident yet and its plan is
wanted at once. From then on ``foremoe.planner.residents`` changes slots only where the target would
be missed, with an eye on the micro-steps to come. Where it finds no way, the micro-step is planned
alone again if that is better, and what that plan shares with the slots stays.

With a cost model and no target, the first micro-steps after that are planned to each of a few
targets, and each of them alone by time. Every layer keeps to the way estimated fastest.

A plan names everything its slots hold, also residents without tokens, so that an engine which makes
the slots equal to the plan keeps exactly what the planner counts on.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.bound import lower_bound
from foremoe.planner.by_time import fastest_replicas, time_saved
from foremoe.planner.cost import CostModel, new_replicas
from foremoe.planner.goal import goal_tokens
from foremoe.planner.micro_step import choose
from foremoe.planner.plan import Plan, placed_tokens
from foremoe.planner.problem import StageProblem
from foremoe.planner.residents import advance
from foremoe.planner.split import split_by_source

LOOKAHEAD = 32  # micro-steps; more change next to nothing, the weights have decayed to a fifth
DEFAULT_TARGET = 1.02
ALONE = 0.0  # in place of a target: each micro-step alone, by time
TARGETS = (1.02, 1.005, 1.05, 1.2, ALONE)  # to choose from by time, the first of the fastest
TRIED = 16  # micro-steps that each target is tried on


def resident(problem: StageProblem, lookahead: int | None = None) -> Iterator[Plan]:
    """Plan each mini-batch over time, to ``problem.target`` or else to an imbalance of 1.02.

    lookahead: coming micro-steps that are taken into account, as many as help unless given; 0 only
        keeps what is there.
    With a cost model and no target, the first micro-step is planned by time, and time chooses each
    layer's target for the others. With a cost model, a layer whose replicas would cost time is
    computed at home.
    """
    lookahead = LOOKAHEAD if lookahead is None else lookahead
    starts = np.flatnonzero(np.diff(problem.mini_batch, prepend=problem.mini_batch[:1] - 1))
    for start, end in zip(
        starts.tolist(), [*starts[1:].tolist(), problem.micro_steps], strict=True
    ):
        slots = _Slots(problem, start, end, lookahead)
        yield slots.plan(start)
        if problem.cost is not None and problem.target is None and end - start > 1:
            slots.target = _fastest_targets(problem, start, end, lookahead, problem.cost)
        for micro_step in range(start + 1, end):
            yield slots.plan(micro_step)


def _fastest_targets(
    problem: StageProblem, start: int, end: int, lookahead: int, cost: CostModel
) -> NDArray[np.float64]:
    """Of ``TARGETS``, the one that saves most time in the first micro-steps: ``[L]``."""
    saved = np.zeros((len(TARGETS), len(problem.home)), np.int64)
    for index, target in enumerate(TARGETS):
        slots = _Slots(problem, start, end, lookahead)
        before = slots.plan(start)
        slots.target[:] = target
        for micro_step in range(start + 1, min(start + 1 + TRIED, end)):
            plan = slots.plan(micro_step)
            copied = new_replicas(plan.replica_expert, before.replica_expert)
            saved[index] += time_saved(plan, copied, problem.topology.ranks_per_node, cost)
            before = plan
    fastest: NDArray[np.float64] = np.array(TARGETS)[saved.argmax(axis=0)]
    return fastest


class _Slots:
    """What the slots hold while one mini-batch is planned, and the flows of what comes next."""

    def __init__(self, problem: StageProblem, start: int, end: int, lookahead: int) -> None:
        _, layers, ranks, experts = problem.load.shape
        rows = min(end - start, lookahead + 1)
        places = problem.spare_slots
        self.problem, self.start, self.end = problem, start, end
        self.rows, self.loaded = rows, start
        target = problem.target
        if target is None:
            target = DEFAULT_TARGET if problem.cost is None else ALONE
        self.target = np.full(layers, target)
        self.bound = np.zeros((layers, rows), np.int64)
        self.threshold = np.zeros((layers, rows), np.int64)
        self.weight = np.zeros((layers, rows, experts), np.int64)
        self.slot = np.full((layers, ranks, places), -1, np.int32)
        self.left = np.zeros((layers, rows, experts), np.int64)
        self.served = np.zeros((layers, rows, ranks, places), np.int64)
        self.tokens = np.zeros((layers, rows, ranks), np.int64)
        self.excess = np.zeros((layers, rows), np.int64)
        self.stuck = np.zeros((layers, rows, ranks), np.bool_)

    def plan(self, micro_step: int) -> Plan:
        """The plan of the next micro-step; call once for each, in order."""
        problem, row = self.problem, micro_step % self.rows
        layers = np.flatnonzero(self.target != ALONE)
        before = self.slot.copy()
        if self.loaded == self.start:  # wanted at once: look no further yet
            self._load(micro_step)
            self._plan_alone(layers, micro_step)
        else:
            while self.loaded < min(micro_step + self.rows, self.end):
                self._load(self.loaded)
            self._advance(layers, row, min(self.rows, self.end - micro_step) - 1)
            self._plan_alone(layers[self.excess[layers, row] > 0], micro_step)
        if problem.cost is not None:
            self._plan_by_time(np.flatnonzero(self.target == ALONE), micro_step, problem.cost)
        quota = np.ascontiguousarray(self.served[:, row])
        plan = Plan(
            home=problem.home,
            load=problem.load[micro_step],
            replica_expert=self.slot.copy(),
            replica_tokens=split_by_source(
                problem.load[micro_step],
                problem.home,
                self.slot,
                quota,
                problem.topology.ranks_per_node,
            ),
            bound=self.bound[:, row].copy(),
        )
        if problem.cost is not None:
            self._undo_slower(plan, before, problem.cost)
        return plan

    def _undo_slower(self, plan: Plan, before: NDArray[np.int32], cost: CostModel) -> None:
        """Where the replicas would cost time, leave the slots as they were and compute at home."""
        copied = new_replicas(plan.replica_expert, before)
        width = self.problem.topology.ranks_per_node
        slower = time_saved(plan, copied, width, cost) < 0
        plan.replica_expert[slower] = self.slot[slower] = before[slower]
        plan.replica_tokens[slower] = 0
        self.excess[slower] = -1

    def _load(self, micro_step: int) -> None:
        """Bring the next micro-step into sight."""
        problem, row = self.problem, micro_step % self.rows
        ranks = problem.topology.ranks
        weight = problem.load[micro_step].sum(axis=1)
        self.weight[:, row] = weight
        self.bound[:, row] = lower_bound(weight, problem.home, ranks, problem.spare_slots)
        self.threshold[:, row] = np.maximum(
            self.bound[:, row], goal_tokens(weight, ranks, self.target)
        )
        self.excess[:, row] = -1
        self.loaded += 1

    def _advance(self, layers: NDArray[np.int64], row: int, ahead: int) -> None:
        advance(
            layers,
            self.weight,
            self.threshold,
            self.problem.home,
            self.problem.topology.ranks_per_node,
            self.slot,
            self.left,
            self.served,
            self.tokens,
            self.excess,
            self.stuck,
            row,
            ahead,
        )

    def _plan_alone(self, layers: NDArray[np.int64], micro_step: int) -> None:
        """Plan some layers of a micro-step as if nothing were resident, where that is better."""
        row = micro_step % self.rows
        if not layers.size:
            return
        home, weight = self.problem.home[layers], self.weight[layers, row]
        wanted, quota = choose(
            self.problem.topology.by_node(self.problem.load[micro_step][layers]),
            home,
            self.bound[layers, row],
            self.threshold[layers, row],
            self.problem.topology,
            self.problem.spare_slots,
            eagerness=int(micro_step == self.start),  # later on, it would cost residents
        )
        tokens = placed_tokens(weight, home, wanted, quota)
        first = self.excess[layers, row] < 0
        better = first | (tokens.max(axis=1) < self.tokens[layers, row].max(axis=1))
        changed = layers[better]
        self.slot[changed] = _merged(self.slot[changed], wanted[better])
        busiest = tokens[better].max(axis=1)
        self.threshold[changed, row] = np.maximum(self.threshold[changed, row], busiest)
        self.excess[changed] = -1
        self._advance(changed, row, 0)

    def _plan_by_time(self, layers: NDArray[np.int64], micro_step: int, cost: CostModel) -> None:
        """Plan some layers of a micro-step by time; what is held stays if there is room."""
        problem, row = self.problem, micro_step % self.rows
        if not layers.size:
            return
        wanted, quota, _ = fastest_replicas(
            problem.load[micro_step][layers],
            problem.home[layers],
            self.bound[layers, row],
            problem.topology,
            problem.spare_slots,
            cost,
        )
        self.slot[layers] = held = _merged(self.slot[layers], wanted)
        same = (held[..., :, None] == wanted[..., None, :]) & (held >= 0)[..., None]
        self.served[layers, row] = (same * quota[..., None, :]).sum(axis=-1)


def _merged(held: NDArray[np.int32], wanted: NDArray[np.int32]) -> NDArray[np.int32]:
    """Slots ``[..., R]`` with all that is wanted: what is held stays in place if there is room.

    >>> _merged(np.array([[4, 7]], np.int32), np.array([[5, -1]], np.int32))
    array([[5, 7]], dtype=int32)
    >>> _merged(np.array([[4, 7]], np.int32), np.array([[7, 5]], np.int32))
    array([[5, 7]], dtype=int32)
    """
    same = held[..., :, None] == wanted[..., None, :]
    missing = (wanted >= 0) & ~same.any(axis=-2)
    coming = np.argsort(~missing, axis=-1, kind="stable")  # the missing ones first
    stays = same.any(axis=-1)
    places = np.argsort(np.where(held < 0, 0, 1 + stays), axis=-1, kind="stable")  # empty, stale
    filled = np.where(
        np.take_along_axis(missing, coming, axis=-1),
        np.take_along_axis(wanted, coming, axis=-1),
        np.take_along_axis(held, places, axis=-1),
    )
    merged = np.empty_like(held)
    np.put_along_axis(merged, places, filled, axis=-1)
    return merged
