"""The virtual clock: what it shows equals what can be reckoned by hand."""

from dataclasses import replace

import numpy as np
import pytest

from foremoe.planner.homes import contiguous_homes
from foremoe.planner.plan import Plan
from foremoe.planner.policies import POLICIES
from foremoe.planner.problem import StageProblem
from foremoe.simulation.cluster import Machine, machine
from foremoe.simulation.contest import CONTESTANTS, IDEAL, UNBALANCED, Group, Plans, run_group
from foremoe.simulation.moved_homes import homes_as_replicas
from foremoe.simulation.stage import passes, simulate_stage
from foremoe.simulation.step import Drawing, Schedule, simulate_step, workload_loads
from foremoe.simulation.timeline import Timeline
from foremoe.simulation.workloads import Shape, micro_step_load

SCHEDULE = Schedule(mini_batches=2, micro_steps=3)


def small(**cluster: float) -> Machine:
    """gpt-oss-20b with three layers on one node."""
    found = machine("gpt-oss-20b", "h100x8", None)
    return replace(
        found, model=replace(found.model, layers=3), cluster=replace(found.cluster, **cluster)
    )


def plans_of(policy: str, on: Machine) -> list[Plan]:
    shape = Shape(3, on.model.experts, on.model.top_k, on.ep_size, 4096)
    load = np.stack([micro_step_load("dirichlet", shape, 0, m) for m in range(6)])
    home = contiguous_homes(3, on.model.experts, on.ep_size)
    problem = StageProblem(load, home, SCHEDULE.mini_batch, on.topology, 2, 1.02)
    return list(POLICIES[policy](problem))


def run(on: Machine, plans: list[Plan], *, backward: bool) -> Timeline:
    return simulate_stage(on, plans, SCHEDULE.mini_batch, backward=backward, keep_spans=True)


@pytest.mark.parametrize("backward", [False, True])
def test_without_replicas_time_is_the_sum_of_its_layers(backward: bool) -> None:
    on = small()
    plans = plans_of("none", on)
    timeline = run(on, plans, backward=backward)
    expected = [sum(int(p.total.sum()) for p in passes(on, x, backward=backward)) for x in plans]
    assert timeline.mini_batch_ns == [sum(expected[:3]), sum(expected[3:])]
    assert timeline.copies == timeline.exposed_copy_ns == timeline.gradient_bytes == 0


def test_replicas_cost_nothing_on_fast_links_and_wait_on_slow_ones() -> None:
    fast = small(host_bytes_per_second=1e15, peer_bytes_per_second=1e15)
    slow = small(host_bytes_per_second=1e9, peer_bytes_per_second=1e9)
    plans = plans_of("resident", fast)
    hidden, waiting = run(fast, plans, backward=False), run(slow, plans, backward=False)
    assert hidden.copies == waiting.copies > 0
    assert hidden.exposed_copy_ns < 1e-3 * sum(hidden.mini_batch_ns)
    assert waiting.exposed_copy_ns > 1e-2 * sum(waiting.mini_batch_ns)
    alone = sum(int(passes(slow, p, backward=False)[0].total.sum()) for p in plans)
    assert sum(waiting.mini_batch_ns) == alone + waiting.exposed_copy_ns


def test_a_layer_computes_only_after_its_copies() -> None:
    on = small(host_bytes_per_second=20e9, peer_bytes_per_second=20e9)
    spans = run(on, plans_of("resident", on), backward=True).spans or []
    starts = {
        (s.micro_step, s.layer): s.start_ns
        for s in spans
        if s.track == "compute" and s.name == "forward"
    }
    free = {
        (s.micro_step, s.layer): s.end_ns
        for s in spans
        if s.track == "compute" and s.name == "backward"
    }
    copies = [s for s in spans if "into rank" in s.track]
    assert copies
    for copy in copies:
        assert copy.end_ns <= starts[copy.micro_step, copy.layer]
        if copy.micro_step % SCHEDULE.micro_steps:
            assert copy.start_ns >= free[copy.micro_step - 1, copy.layer]


def test_gradients_travel_once_for_each_stay() -> None:
    on = small()
    plans = plans_of("resident", on)
    timeline = run(on, plans, backward=True)
    assert timeline.gradient_bytes == timeline.copies * on.gradient_bytes
    slow = replace(on, cluster=replace(on.cluster, peer_bytes_per_second=1e9))
    assert run(slow, plans, backward=True).exposed_gradient_ns > timeline.exposed_gradient_ns


def test_homes_that_move_compute_the_same_pairs_as_replicas() -> None:
    on = small()
    home = contiguous_homes(3, on.model.experts, on.ep_size)
    for plan in plans_of("eplb-oracle", on):
        moved = homes_as_replicas(plan, home)
        assert (moved.home == home).all()
        assert (moved.rank_tokens() == plan.rank_tokens()).all()
        assert (moved.replica_tokens >= 0).all()
        for before, after in zip(
            passes(on, plan, backward=True), passes(on, moved, backward=True), strict=True
        ):
            assert (before.total == after.total).all()


def test_homes_of_the_step_are_moved_before_it_begins() -> None:
    on = small()
    shape = Shape(3, on.model.experts, on.model.top_k, on.ep_size, 4096)
    load = np.stack([micro_step_load("W2_hot_rank", shape, 0, m) for m in range(6)])
    group = Group(load, SCHEDULE.mini_batch)
    plans = Plans(group, on, 2, 1.02).of("foremoe + homes")
    recompute, update = run_group("foremoe + homes", plans, group, on).values()
    busiest = 0
    for old, new in zip(contiguous_homes(3, on.model.experts, 8), plans[0].home, strict=True):
        ways = np.bincount(old[old != new]), np.bincount(new[old != new])
        busiest += max(int(ways[0].max()), int(ways[1].max()))
    state = 14 * on.model.expert_weights / on.cluster.peer_bytes_per_second
    assert recompute.move_ns == pytest.approx(1e9 * busiest * state, rel=1e-3)
    assert busiest > 0 == update.move_ns
    at_once = run(on, plans, backward=False)
    assert recompute.mini_batch_ns[0] == at_once.mini_batch_ns[0] + recompute.move_ns
    assert recompute.mini_batch_ns[1:] == at_once.mini_batch_ns[1:]


def test_the_slowest_group_ends_a_mini_batch() -> None:
    on = machine("gpt-oss-20b", "h100x16", None)
    on = replace(on, model=replace(on.model, layers=2))
    loads = workload_loads("dirichlet", on, SCHEDULE, Drawing(1024, 8, 0))
    both = simulate_step(on, loads, SCHEDULE, slots=1, target=1.05, names=[])
    alone = [
        simulate_step(
            replace(on, ranks=8),
            lambda _, group=group: loads(group),  # type: ignore[misc]
            SCHEDULE,
            slots=1,
            target=1.05,
            names=[],
        )
        for group in range(2)
    ]
    for stage in ("recompute", "update"):
        single = [outcomes[0].seconds[stage] for outcomes in alone]
        assert max(single) <= both[0].seconds[stage] <= sum(single)


def test_all_take_part_and_none_beats_the_ideal() -> None:
    on = machine("gpt-oss-20b", "h100x8", None)
    on = replace(on, model=replace(on.model, layers=2))
    loads = workload_loads("W2_hot_rank", on, SCHEDULE, Drawing(8192, 8, 0))
    outcomes = {
        o.name: o
        for o in simulate_step(on, loads, SCHEDULE, slots=2, target=1.02, names=list(CONTESTANTS))
    }
    assert outcomes.keys() == CONTESTANTS.keys()
    assert outcomes[UNBALANCED].speedup == outcomes[IDEAL].of_ideal == 1.0
    assert outcomes[IDEAL].imbalance_max < 1.01
    assert all(outcome.of_ideal < 1.01 for outcome in outcomes.values())
    assert outcomes["foremoe"].imbalance_max <= 1.02
    charged, free = outcomes["EPLB oracle"], outcomes["EPLB oracle, moves free"]
    assert charged.imbalance_max == free.imbalance_max
    assert charged.speedup < free.speedup
    assert charged.copies > outcomes["foremoe"].copies > free.copies == 0
    assert outcomes["foremoe"].speedup > outcomes["EPLB history"].speedup > 1.0
