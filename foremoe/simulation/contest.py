"""Who is compared, and how each one's micro-steps pass.

``ahead`` knows the routing before the stage: plans are ready and copies run ahead of their layer.
Where such a plan moves homes between micro-steps, their weights are copies and their gradients go
back to where the optimizer is; where it moves them once for the step, parameters and optimizer
state travel before recompute begins.
``critical path`` knows it only after the gate, as UltraEP and MoonEP (arXiv 2606.04101): planning
and copies stand between gate and compute in the forward pass, as dispatch needs the plan and the
links that copies need; the backward pass hides its copies. ``given`` gets its copies and moves for
nothing, which favours it: for no balancing, for EPLB's second row, and for the ideal that
force-balances the router.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.home_moves import move_picoseconds
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.plan import Plan
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem
from foremoe.planner.step_homes import step_homes
from foremoe.simulation.cluster import Machine
from foremoe.simulation.moved_homes import homes_as_replicas
from foremoe.simulation.stage import passes, simulate_stage
from foremoe.simulation.timeline import SECOND, Timeline
from foremoe.simulation.turnover import turnover
from foremoe.transfer.copies import EMPTY
from foremoe.vocabulary import Stage

# "<100 us" for 64 ranks on one GPU: arXiv 2606.04101.
CRITICAL_PATH_PLANNING_NS = 100_000
IDEAL = "force-balanced"
UNBALANCED = "unbalanced"


class Knowledge(StrEnum):
    """When a contestant knows the routing, and what its copies cost."""

    AHEAD = "ahead"
    CRITICAL_PATH = "critical path"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Contestant:
    """policy: of ``foremoe.planner.policies``. homes: ``contiguous`` or ``step``.

    charged: whether the policy moves homes, which then count as replicas.
    """

    policy: str
    knowledge: Knowledge
    homes: str = "contiguous"
    charged: bool = False


CONTESTANTS: dict[str, Contestant] = {
    UNBALANCED: Contestant("none", Knowledge.GIVEN),
    "EPLB history": Contestant("eplb-history", Knowledge.GIVEN),
    "EPLB oracle, moves free": Contestant("eplb-oracle", Knowledge.GIVEN),
    "EPLB oracle": Contestant("eplb-oracle", Knowledge.AHEAD, charged=True),
    "critical path": Contestant("greedy", Knowledge.CRITICAL_PATH),
    "node-confined": Contestant("greedy-in-node", Knowledge.AHEAD),
    "foremoe": Contestant("resident", Knowledge.AHEAD),
    "foremoe + homes": Contestant("resident", Knowledge.AHEAD, "step"),
    IDEAL: Contestant("none", Knowledge.GIVEN),
}


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One EP group's stage: ``load [M, L, P, E]``, ``mini_batch [M]``."""

    load: NDArray[np.int64]
    mini_batch: NDArray[np.int32]


class Plans:
    """The contestants' plans for one EP group, which both stages follow."""

    def __init__(self, group: Group, machine: Machine, slots: int, target: float | None) -> None:
        self._group, self._machine = group, machine
        self._slots, self._target = slots, target
        self._made: dict[tuple[str, str, bool], list[Plan]] = {}

    def of(self, name: str) -> list[Plan]:
        """One plan a micro-step."""
        contestant = CONTESTANTS[name]
        key = contestant.policy, contestant.homes, name == IDEAL
        if key not in self._made:
            self._made[key] = list(POLICIES[contestant.policy](self._problem(*key)))
        if not contestant.charged:
            return self._made[key]
        _, layers, ranks, experts = self._group.load.shape
        home = contiguous_homes(layers, experts, ranks)
        return [homes_as_replicas(plan, home) for plan in self._made[key]]

    def _problem(self, _: str, homes: str, ideal: bool) -> StageProblem:
        group, topology = self._group, self._machine.topology
        load = _forced(group.load) if ideal else group.load
        home = contiguous_homes(load.shape[1], load.shape[3], topology.ranks)
        if homes == "step":
            home = step_homes(load.sum(axis=2), home, topology.ranks, topology.ranks_per_node)
        return StageProblem(
            load,
            home,
            group.mini_batch,
            topology,
            self._slots,
            self._target,
            self._machine.update() if self._target is None else None,  # as the daemon plans
        )


def run_group(
    name: str,
    plans: Sequence[Plan],
    group: Group,
    machine: Machine,
    *,
    keep_spans: bool = False,
) -> dict[Stage, Timeline]:
    """Simulate a contestant's plans in both stages of one EP group."""
    if CONTESTANTS[name].knowledge is Knowledge.AHEAD:
        turned = turnover(plans, group.mini_batch)
        timelines = {
            stage: simulate_stage(
                machine,
                plans,
                group.mini_batch,
                backward=stage is Stage.UPDATE,
                keep_spans=keep_spans,
                turned=turned,
            )
            for stage in Stage
        }
        first = timelines[Stage.RECOMPUTE]
        first.move_ns = _move_ns(machine, plans[0])
        first.mini_batch_ns[0] += first.move_ns
        return timelines
    return {
        stage: _given(name, plans, group, machine, backward=stage is Stage.UPDATE)
        for stage in Stage
    }


def _given(
    name: str, plans: Sequence[Plan], group: Group, machine: Machine, *, backward: bool
) -> Timeline:
    """Micro-steps whose copies cost nothing, or stand on the critical path."""
    wait: Callable[[Plan], int] = _nothing
    timeline = Timeline()
    if CONTESTANTS[name].knowledge is Knowledge.CRITICAL_PATH:
        wait = _Gate(machine)
    weights = machine.model.expert_bytes
    for first in np.flatnonzero(np.diff(group.mini_batch, prepend=group.mini_batch[:1] - 1)):
        total = 0
        for index in np.flatnonzero(group.mini_batch == group.mini_batch[first]):
            plan = plans[int(index)]
            waited = wait(plan)
            timeline.exposed_copy_ns += waited
            total += waited
            total += sum(int(p.total.sum()) for p in passes(machine, plan, backward=backward))
            if wait is not _nothing:
                timeline.copies += plan.replicas()
        timeline.mini_batch_ns.append(total)
    timeline.link_bytes = {"peer": timeline.copies * weights} if timeline.copies else {}
    return timeline


def _move_ns(machine: Machine, plan: Plan) -> int:
    """Parameters and optimizer state from contiguous homes to those of the plan."""
    layers, experts = plan.home.shape
    before = contiguous_homes(layers, experts, machine.ep_size)
    width = machine.topology.ranks_per_node
    return int(move_picoseconds(before, plan.home, width, machine.update()).sum() // 1000)


def _nothing(plan: Plan) -> int:
    del plan
    return 0


class _Gate:
    """What stands between gate and compute when the routing is known only then."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __call__(self, plan: Plan) -> int:
        """Nanoseconds of one micro-step: planning and the busiest rank's copies in, by layer.

        Relays spread a hot expert, so that ways in bound the time, not its home's way out.
        """
        machine, topology = self._machine, self._machine.topology
        slots = plan.replica_expert
        layers = np.arange(len(slots))[:, None, None]
        owner = plan.home[layers, np.maximum(slots, 0)]
        node = np.arange(topology.ranks)[:, None] // topology.ranks_per_node
        far = ((owner // topology.ranks_per_node != node) & (slots != EMPTY)).sum(axis=2)
        near = (slots != EMPTY).sum(axis=2) - far
        cluster, weights = machine.cluster, machine.model.expert_bytes
        seconds = weights * np.maximum(
            near / cluster.peer_bytes_per_second, far / cluster.network_bytes_per_second
        )
        copies = (seconds.max(axis=1) * SECOND).astype(np.int64)
        return int((CRITICAL_PATH_PLANNING_NS + copies).sum())


def _forced(load: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same pairs by source, spread evenly over all experts."""
    experts = load.shape[-1]
    own = load.sum(axis=-1, keepdims=True)
    even = np.broadcast_to(own // experts, load.shape).copy()
    rest = own - even.sum(axis=-1, keepdims=True)
    first = np.cumsum(rest, axis=-2) - rest
    even += (np.arange(experts) - first) % experts < rest
    return even
