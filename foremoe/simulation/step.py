"""One RL step of a whole cluster: EP groups side by side, met at the end of every mini-batch."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan
from foremoe.simulation.cluster import Machine
from foremoe.simulation.contest import (
    CONTESTANTS,
    IDEAL,
    UNBALANCED,
    Group,
    Knowledge,
    Plans,
    run_group,
)
from foremoe.simulation.timeline import SECOND, Span, Timeline
from foremoe.simulation.workloads import Shape, heat_load, micro_step_load
from foremoe.vocabulary import Stage

Loads = Callable[[int], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """mini_batches of micro_steps each, the same sequences in both stages."""

    mini_batches: int
    micro_steps: int  # of a mini-batch

    def __post_init__(self) -> None:
        if self.mini_batches < 1 or self.micro_steps < 1:
            raise InvalidInputError("simulate: needs at least 1 mini-batch and 1 micro-step")

    @property
    def mini_batch(self) -> NDArray[np.int32]:
        return np.repeat(np.arange(self.mini_batches, dtype=np.int32), self.micro_steps)


@dataclass(frozen=True, slots=True)
class Drawing:
    """Drawn for a micro-step: tokens of each rank, in so many sequences of the EP group."""

    tokens: int
    sequences: int
    seed: int

    def shape(self, machine: Machine) -> Shape:
        """Raises InvalidInputError unless every rank gets as many sequences."""
        if self.sequences < 1 or self.sequences % machine.ep_size:
            raise InvalidInputError(
                f"--sequences-per-micro-step {self.sequences}: drawn routing needs a multiple of "
                f"the {machine.ep_size} ranks of an EP group"
            )
        model, sequences = machine.model, self.sequences // machine.ep_size
        return Shape(
            model.layers, model.experts, model.top_k, machine.ep_size, self.tokens, sequences
        )


def workload_loads(name: str, machine: Machine, schedule: Schedule, drawing: Drawing) -> Loads:
    """A named workload, drawn anew for every EP group."""
    draw = partial(micro_step_load, name, drawing.shape(machine), drawing.seed)
    return partial(_drawn_loads, draw, schedule)


def heat_loads(
    heat: NDArray[np.float64], machine: Machine, schedule: Schedule, drawing: Drawing
) -> Loads:
    """Sequences drawn around a recorded ``heat [layers, E]``, anew for every EP group."""
    draw = partial(heat_load, heat, drawing.shape(machine), drawing.seed)
    return partial(_drawn_loads, draw, schedule)


def _drawn_loads(
    draw: Callable[[int], NDArray[np.int64]], schedule: Schedule, group: int
) -> NDArray[np.int64]:
    total = schedule.mini_batches * schedule.micro_steps
    return np.stack([draw(group * total + m) for m in range(total)])


def trace_loads(
    histograms: NDArray[np.uint32], machine: Machine, schedule: Schedule, sequences: int
) -> Loads:
    """Recorded sequences ``[S, L, E]`` in file order, ``sequences`` a micro-step and EP group.

    Group g takes the micro-steps after those of group g - 1, from the start again at the end.
    Raises InvalidInputError when the trace is of another model.
    """
    found = histograms.shape[1:]
    if found != (machine.model.layers, machine.model.experts):
        raise InvalidInputError(
            f"--trace: has {found[0]} layers of {found[1]} experts, the model has "
            f"{machine.model.layers} of {machine.model.experts}"
        )
    return partial(_trace_load, histograms, machine.ep_size, schedule, sequences)


def _trace_load(
    histograms: NDArray[np.uint32], ranks: int, schedule: Schedule, sequences: int, group: int
) -> NDArray[np.int64]:
    total = schedule.mini_batches * schedule.micro_steps
    load = np.zeros((total, histograms.shape[1], ranks, histograms.shape[2]), np.int64)
    for micro_step in range(total):
        first = (group * total + micro_step) * sequences
        for place in range(sequences):
            load[micro_step, :, place % ranks] += histograms[(first + place) % len(histograms)]
    return load


@dataclass(frozen=True, slots=True)
class Outcome:
    """One contestant's step.

    seconds: by stage. speedup: over unbalanced; of_ideal: of the speed with a force-balanced
    router; both for the stages together. imbalance: mean and maximum over micro-steps and layers.
    exposed_seconds: of copies, gradients and moves of homes, the mean EP group's. copies,
    link_bytes and gradient_bytes of both stages and all groups. extra_bytes: slots of one rank.
    """

    name: str
    seconds: dict[str, float]
    speedup: float
    of_ideal: float
    imbalance_mean: float
    imbalance_max: float
    exposed_seconds: float
    copies: int
    link_bytes: dict[str, int]
    gradient_bytes: int
    extra_bytes: int


@dataclass(frozen=True, slots=True)
class _Part:
    """One EP group's outcome for one contestant."""

    timelines: dict[Stage, Timeline]
    imbalance: NDArray[np.float64]


def simulate_step(
    machine: Machine,
    loads: Loads,
    schedule: Schedule,
    *,
    slots: int,
    target: float | None,
    names: Sequence[str],
    workers: int = 1,
    done: Callable[[], Any] = lambda: None,
) -> list[Outcome]:
    """Every contestant's step on the same routing; ``unbalanced`` and the ideal always take part.

    loads(g): int64 ``[M, L, P, E]`` of EP group g. done is called after each EP group.
    """
    taking_part = [n for n in CONTESTANTS if n in names or n in (UNBALANCED, IDEAL)]
    work = partial(_run_group, machine, loads, schedule, slots, target, taking_part)
    parts: dict[str, list[_Part]] = {name: [] for name in taking_part}
    for found in _map(work, machine.groups, workers):
        for name, part in zip(taking_part, found, strict=True):
            parts[name].append(part)
        done()
    total = {name: sum(_seconds(group).values()) for name, group in parts.items()}
    return [
        _outcome(name, machine, slots, parts[name], total[UNBALANCED], total[IDEAL])
        for name in taking_part
    ]


def record_spans(
    machine: Machine,
    loads: Loads,
    schedule: Schedule,
    *,
    slots: int,
    target: float | None,
    name: str = "foremoe",
) -> dict[Stage, list[Span]]:
    """The spans of the first EP group's stages."""
    group = Group(loads(0), schedule.mini_batch)
    plans = Plans(group, machine, slots, target).of(name)
    timelines = run_group(name, plans, group, machine, keep_spans=True)
    return {stage: timeline.spans or [] for stage, timeline in timelines.items()}


def _map(work: Callable[[int], list[_Part]], groups: int, workers: int) -> Iterator[list[_Part]]:
    if workers == 1:
        yield from map(work, range(groups))
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(work, range(groups))


def _run_group(
    machine: Machine,
    loads: Loads,
    schedule: Schedule,
    slots: int,
    target: float | None,
    names: Sequence[str],
    index: int,
) -> list[_Part]:
    """One EP group's part in every contestant's step."""
    group = Group(loads(index), schedule.mini_batch)
    made = Plans(group, machine, slots, target)
    parts = []
    for name in names:
        plans = made.of(name)
        parts.append(
            _Part(
                run_group(name, plans, group, machine),
                np.stack([_imbalance(plan) for plan in plans]),
            )
        )
    return parts


def _imbalance(plan: Plan) -> NDArray[np.float64]:
    return imbalance(plan.rank_tokens())


def _seconds(parts: Sequence[_Part]) -> dict[str, float]:
    """By stage: in every mini-batch the cluster waits for its slowest EP group."""
    return {
        stage.value: float(
            np.max([part.timelines[stage].mini_batch_ns for part in parts], axis=0).sum() / SECOND
        )
        for stage in Stage
    }


def _outcome(
    name: str, machine: Machine, slots: int, parts: Sequence[_Part], slowest: float, ideal: float
) -> Outcome:
    timelines = [timeline for part in parts for timeline in part.timelines.values()]
    seconds = _seconds(parts)
    total = sum(seconds.values())
    values = np.concatenate([part.imbalance.ravel() for part in parts])
    links: dict[str, int] = {}
    for timeline in timelines:
        for link, carried in timeline.link_bytes.items():
            links[link] = links.get(link, 0) + carried
    exposed = sum(t.exposed_copy_ns + t.exposed_gradient_ns + t.move_ns for t in timelines)
    return Outcome(
        name,
        seconds,
        slowest / total,
        ideal / total,
        float(values.mean()),
        float(values.max()),
        exposed / SECOND / len(parts),
        sum(timeline.copies for timeline in timelines),
        links,
        sum(timeline.gradient_bytes for timeline in timelines),
        _slot_bytes(name, machine, slots),
    )


def _slot_bytes(name: str, machine: Machine, slots: int) -> int:
    """A rank's slots: a weight and a gradient slab each, per layer where replicas stay.

    Homes that move ahead of time need a slot for each expert beside those whose state is there.
    """
    contestant = CONTESTANTS[name]
    if contestant.policy == "none":
        return 0
    if contestant.charged:
        slots += machine.model.experts // machine.ep_size
    shared = contestant.knowledge is Knowledge.CRITICAL_PATH
    each = machine.model.expert_bytes + machine.gradient_bytes
    return slots * each * (1 if shared else machine.model.layers)
