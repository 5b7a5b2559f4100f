"""A stage of one EP group as a chain of events: layers wait for copies, copies for links.

A micro-step is a forward pass over the layers and, in the update stage, a backward pass the other
way. Dispatch and combine are collective, so all ranks pass a layer together, in

    other work + dispatch + max over ranks of expert compute + combine,

priced by the cost model that the planner plans with. In resident mode a layer's slots may be filled
from the end of their use in the micro-step before, at the start of a mini-batch at once, and are
needed when the layer's dispatch ends; the real scheduler places the copies on the links, and what
comes later than that is exposed. A copy without room in its window is waited for. Links carry
copies while dispatch uses them too; that is reckoned with by lending them to copies for the share
of the time that dispatch leaves free.

Gradients of replicas travel once, when the replica is evicted or the mini-batch ends, over the
busiest rank's link one layer after another, from the end of the layer's backward on; what is not
home when the mini-batch's last backward ends is exposed. The optimizer's time is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foremoe.planner.cost import CostModel, layer_seconds
from foremoe.planner.plan import Plan
from foremoe.planner.problem import Topology
from foremoe.simulation.cluster import Machine
from foremoe.simulation.timeline import SECOND, Span, Timeline
from foremoe.simulation.turnover import Turnover, turnover
from foremoe.transfer.copies import EMPTY
from foremoe.transfer.schedule.calendar import Calendar
from foremoe.transfer.schedule.links import NEVER, Link, Links
from foremoe.transfer.schedule.micro_step import schedule_micro_step
from foremoe.transfer.schedule.timetable import LayerCopies, Timetable

Nanoseconds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the layers of a micro-step, int64 nanoseconds ``[L]`` each."""

    other: Nanoseconds
    dispatch: Nanoseconds  # and combine
    compute: Nanoseconds

    @property
    def total(self) -> Nanoseconds:
        return self.other + self.dispatch + self.compute


def simulate_stage(
    machine: Machine,
    plans: Sequence[Plan],
    mini_batch: NDArray[np.int32],
    *,
    backward: bool,
    keep_spans: bool = False,
    turned: Sequence[Sequence[Turnover]] | None = None,
) -> Timeline:
    """Run ``plans``, one a micro-step, with copies ahead of the layers that need them.

    turned: their ``turnover``, where the caller has it for the other stage already.
    """
    turned = turnover(plans, mini_batch) if turned is None else turned
    run = _Run(machine, backward, Timeline(spans=[] if keep_spans else None))
    for first in np.flatnonzero(np.diff(mini_batch, prepend=mini_batch[:1] - 1)).tolist():
        run.begin_mini_batch(plans[first])
        for index in np.flatnonzero(mini_batch == mini_batch[first]).tolist():
            run.micro_step(index, plans[index], turned[index])
        run.end_mini_batch()
    return run.timeline


def passes(machine: Machine, plan: Plan, *, backward: bool) -> list[Pass]:
    """The forward pass, and with ``backward`` the other one."""
    forward = _prices(machine.forward(), plan, machine.topology)
    if not backward:
        return [forward]
    both = _prices(machine.update(), plan, machine.topology)
    return [
        forward,
        Pass(
            both.other - forward.other,
            both.dispatch - forward.dispatch,
            both.compute - forward.compute,
        ),
    ]


def _prices(cost: CostModel, plan: Plan, topology: Topology) -> Pass:
    parts = layer_seconds(cost, plan, topology.ranks_per_node)
    own = plan.load.sum(axis=2).max(axis=1)
    return Pass(own * cost.other_pair // 1000, _ns(parts.dispatch), _ns(parts.compute))


def _ns(seconds: NDArray[np.float64]) -> Nanoseconds:
    return np.rint(seconds * SECOND).astype(np.int64)


class _Run:
    """Clock, slots and links of a stage under way."""

    def __init__(self, machine: Machine, backward: bool, timeline: Timeline) -> None:
        self.machine, self.backward, self.timeline = machine, backward, timeline
        self.now = 0
        self.gradients_home = 0

    def begin_mini_batch(self, plan: Plan) -> None:
        """Weights have changed: every slot is void, every link is idle."""
        self.started = self.gradients_home = self.now
        self.free_at = [self.now] * len(plan.home)
        self.home = plan.home
        forward = passes(self.machine, plan, backward=False)[0]
        busy = float(forward.dispatch.sum() / max(1, forward.total.sum()))
        self.links = _lent(self.machine.links, 1.0 - busy)
        self.calendar = Calendar.empty(self.links)

    def micro_step(self, index: int, plan: Plan, turned: Sequence[Turnover]) -> None:
        self.last, self.turned = index, turned
        both = passes(self.machine, plan, backward=self.backward)
        arrival = self._copy(index, both[0])
        for layer in range(len(plan.home)):
            self._layer(index, layer, both[0], "forward", arrival[layer])
            if not self.backward:
                self.free_at[layer] = self.now
        if self.backward:
            for layer in reversed(range(len(plan.home))):
                self._layer(index, layer, both[1], "backward", 0)
                self.free_at[layer] = self.now

    def end_mini_batch(self) -> None:
        """All gradients come home before the optimizer reads them."""
        for layer in reversed(range(len(self.turned))):
            self._return_gradients(layer, self.turned[layer].content)
        late = max(0, self.gradients_home - self.now)
        self.timeline.exposed_gradient_ns += late
        self._span("exposed", "gradients", late, self.last, 0)
        self.timeline.mini_batch_ns.append(self.now - self.started)

    def _layer(self, index: int, layer: int, times: Pass, name: str, arrival: int) -> None:
        """Other work, dispatch, the wait for copies, compute, combine."""
        there = int(times.dispatch[layer]) // 2
        self._span("other", name, int(times.other[layer]), index, layer)
        self._span("dispatch", name, there, index, layer)
        late = max(0, arrival - self.now)
        self.timeline.exposed_copy_ns += late
        self._span("exposed", name, late, index, layer)
        self._span("compute", name, int(times.compute[layer]), index, layer)
        self._span("dispatch", name, int(times.dispatch[layer]) - there, index, layer)

    def _span(self, track: str, name: str, length_ns: int, index: int, layer: int) -> None:
        self.timeline.add(Span(track, name, self.now, self.now + length_ns, index, layer))
        self.now += length_ns

    def _copy(self, index: int, forward: Pass) -> list[int]:
        """Fill the slots for a micro-step; when each layer's replicas have arrived."""
        starts = self.now + np.cumsum(forward.total) - forward.total
        needed = starts + forward.other + forward.dispatch // 2
        wanted = []
        for layer, turned in enumerate(self.turned):
            self._return_gradients(layer, turned.evicted)
            wanted.append(
                LayerCopies(
                    layer,
                    turned.fills,
                    self.home[layer],
                    self.free_at[layer],
                    int(needed[layer]),
                    turned.value,
                    NEVER,
                )
            )
        calendar = self.calendar.after(min(self.free_at))
        table = schedule_micro_step(wanted, self.links, calendar)
        arrival = [0] * len(wanted)
        self._take(index, table, arrival)
        self.calendar = table.calendar
        return arrival

    def _take(self, index: int, table: Timetable, arrival: list[int]) -> None:
        weights, timeline = self.machine.model.expert_bytes, self.timeline
        ends = table.end_ns.tolist()
        for copy, end in zip(table.copies, ends, strict=True):
            arrival[copy.layer] = max(arrival[copy.layer], end)
        timeline.copies += len(table.copies)
        for link in Link:
            carried = int(np.count_nonzero(table.link == link)) * weights
            if carried:
                name = link.name.lower()
                timeline.link_bytes[name] = timeline.link_bytes.get(name, 0) + carried
        if timeline.spans is None:
            return
        links, starts = table.link.tolist(), table.start_ns.tolist()
        for copy, link, start, end in zip(table.copies, links, starts, ends, strict=True):
            timeline.add(
                Span(
                    f"{Link(link).name.lower()} into rank {copy.destination}",
                    f"expert {copy.expert}",
                    start,
                    end,
                    index,
                    copy.layer,
                    weights,
                )
            )

    def _return_gradients(self, layer: int, slots: NDArray[np.int32]) -> None:
        """Send home what the given slots ``[P, R]`` of a layer have gathered."""
        if not self.backward or not (slots != EMPTY).any():
            return
        machine, topology = self.machine, self.machine.topology
        rank, slot = np.nonzero(slots != EMPTY)
        owner = self.home[layer, slots[rank, slot]]
        far = owner // topology.ranks_per_node != rank // topology.ranks_per_node
        seconds = 0.0
        for chosen, bytes_per_second in (
            (~far, machine.cluster.peer_bytes_per_second),
            (far, machine.cluster.network_bytes_per_second),
        ):
            for end in (rank[chosen], owner[chosen]):
                busiest = int(np.bincount(end, minlength=1).max()) * machine.gradient_bytes
                seconds = max(seconds, busiest / bytes_per_second)
        self.timeline.gradient_bytes += rank.size * machine.gradient_bytes
        start = max(self.gradients_home, self.free_at[layer])
        self.gradients_home = start + int(seconds * SECOND)


def _lent(links: Links, share: float) -> Links:
    """Peer and network links as copies have them for ``share`` of the time."""
    share = max(share, 0.01)
    return replace(
        links,
        peer_slab_ns=int(links.peer_slab_ns / share),
        network_slab_ns=int(links.network_slab_ns / share),
    )
