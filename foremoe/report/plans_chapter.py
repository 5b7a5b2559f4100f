"""A chapter on the plans of one stage."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.cost import CostModel
from foremoe.planner.figures import figures, timed_plans
from foremoe.planner.plan import Plan
from foremoe.planner.policies import warm_up
from foremoe.planner.preset import cluster_preset, cost_model, model_preset
from foremoe.planner.problem import StageProblem
from foremoe.report.chart import Chapter, Chart, Fact
from foremoe.report.frontier import CURVES, frontier
from foremoe.report.heatmap import heatmap
from foremoe.report.imbalance_chart import imbalance_chart
from foremoe.report.planning_chart import planning_chart
from foremoe.report.plans_run import PlansRun
from foremoe.report.timeline_chart import needed_seconds, timeline_chart
from foremoe.report.traffic import traffic
from foremoe.simulation.cluster import Machine
from foremoe.simulation.stage import simulate_stage
from foremoe.timeline.span import Span
from foremoe.vocabulary import Stage

NO_TIMES = "timeline and planning deadline: they need --model (and --cluster)"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the stage would run on: presets, or TOML files of one's own."""

    model: str
    cluster: str
    stage: Stage

    def cost(self) -> CostModel:
        return cost_model(model_preset(self.model), cluster_preset(self.cluster), self.stage)


def plans_chapter(run: PlansRun, hardware: Hardware | None) -> Chapter:
    """Everything that plans tell; with hardware also the time it takes, simulated."""
    warm_up({*CURVES, run.policy or "foremoe"})
    charts: list[Chart] = [imbalance_chart(run), heatmap(run), frontier(run), traffic(run)]
    missing = [NO_TIMES]
    if hardware is not None:
        timed, missing = _timed(run, hardware)
        charts += timed
    micro_steps, layers, ranks, experts = run.shape
    policy = "" if run.policy is None else f", policy {run.policy}"
    return Chapter(
        f"{micro_steps} micro-steps, {layers} layers, {experts} experts on {ranks} ranks, "
        f"{run.spare_slots} spare slots{policy}",
        run.source,
        _facts(run),
        charts,
        missing,
    )


def _facts(run: PlansRun) -> list[Fact]:
    found = figures(list(run.plans), run.topology.ranks_per_node)
    before, after = float(run.before().mean()), found["imbalance_after"]["mean"]
    gap, copies = found["bound_gap"]["mean"], found["copies_per_layer"]["mean"]
    facts = [
        Fact("imbalance-before", "imbalance before", before, f"{before:.3f}"),
        Fact("imbalance-after", "imbalance after", after, f"{after:.4f}"),
        Fact("bound-gap", "above the lower bound", gap, f"{gap:.2%}"),
        Fact("copies", "copies per layer and micro-step", copies, f"{copies:.2f}"),
    ]
    if run.planning_seconds is not None:
        seconds = float(run.planning_seconds.mean())
        facts.append(
            Fact("planning", "planning a micro-step, one core", seconds, f"{1e3 * seconds:.2f} ms")
        )
    return facts


def _timed(run: PlansRun, hardware: Hardware) -> tuple[list[Chart], list[str]]:
    machine = Machine(
        model_preset(hardware.model),
        cluster_preset(hardware.cluster),
        run.topology.ranks,
        run.topology.ranks,
    )
    _, _, _, experts = run.shape
    if machine.model.experts != experts:
        raise InvalidInputError(
            f"--model: {hardware.model} has {machine.model.experts} experts a layer, "
            f"the plans have {experts}"
        )
    spans = _spans(run.plans, machine, hardware.stage)
    seconds, how = _planning(run, hardware)
    how += f" Deadlines: {hardware.stage} of {hardware.model} on {hardware.cluster}, simulated."
    needed = np.array(needed_seconds(spans))
    charts = [timeline_chart(str(hardware.stage), spans), planning_chart(seconds, needed, how)]
    return charts, []


def _spans(plans: Sequence[Plan], machine: Machine, stage: Stage) -> list[Span]:
    mini_batch = np.zeros(len(plans), np.int32)
    timeline = simulate_stage(
        machine, plans, mini_batch, backward=stage is Stage.UPDATE, keep_spans=True
    )
    return timeline.spans or []


def _planning(run: PlansRun, hardware: Hardware) -> tuple[NDArray[np.float64], str]:
    """Seconds of each plan, and where they are from."""
    if run.planning_seconds is not None:
        return run.planning_seconds, "Planning: as measured, one core."
    policy = run.policy or "foremoe"
    problem = StageProblem(
        load=np.stack([plan.load for plan in run.plans]),
        home=run.plans[0].home,
        mini_batch=np.zeros(len(run.plans), np.int32),
        topology=run.topology,
        spare_slots=run.spare_slots,
        target=run.target,
        cost=hardware.cost(),
    )
    _, seconds = timed_plans(problem, policy)
    return seconds, f"Planning: done again for this report by policy {policy}, one core."
