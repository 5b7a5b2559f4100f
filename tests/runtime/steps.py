"""Whole RL steps for tests: two ranks that are told plans and report having done just that."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from foremoe.client import (
    ControllerClient,
    MicroStepReport,
    MicroStepSchedule,
    RankClient,
    RankRegistration,
)
from foremoe.planner.plan import Plan, home_tokens
from foremoe.rpc.status import StageStatus
from foremoe.timeline.recorder import Activity, SpanRecorder
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.uploads import TOP_K

RANKS = 2
EXPERTS = 8
LAYERS = (1, 3, 4)
MICRO_STEPS = 3
GROUP = RankRegistration("ep0", 0, RANKS, RANKS, 1, EXPERTS, LAYERS)
WAIT_SECONDS = 30.0
EXPOSED_SECONDS = 3e-4  # of a layer, as recorded
Reasons = Mapping[tuple[int, int], str]
NO_REASONS: Reasons = {}


class Group:
    """An EP group that is attached, and the controller of its job."""

    def __init__(
        self,
        controller: ControllerClient,
        name: str,
        ranks: list[RankClient],
        spans: Sequence[SpanRecorder] = (),
    ) -> None:
        self.controller = controller
        self.name = name
        self.ranks = ranks
        self.spans = spans
        self.loads: list[NDArray[np.int64]] = []  # of the last upload: [L, P, E] by micro-step
        self._random = np.random.default_rng(0)

    def upload(self, step: int) -> None:
        """One sequence for each micro-step and rank, the first rank's experts in favour."""
        bias = np.array([1.0] * (EXPERTS // 2) + [0.3] * (EXPERTS // 2))
        self.loads = [np.zeros((len(LAYERS), RANKS, EXPERTS), np.int64) for _ in range(MICRO_STEPS)]
        with self.controller.foresight_stream(step, LAYERS, EXPERTS, TOP_K) as stream:
            for index in range(MICRO_STEPS):
                for rank in range(RANKS):
                    scores = self._random.random((64, len(LAYERS), EXPERTS)) * bias
                    ids = np.argsort(-scores, axis=-1)[..., :TOP_K].astype(np.uint8)
                    stream.add(f"{index}-{rank}", expert_ids=ids)
                    for layer in range(len(LAYERS)):
                        counts = np.bincount(ids[:, layer].ravel(), minlength=EXPERTS)
                        self.loads[index][layer, rank] = counts

    def schedule(self, step: int, stage: Stage) -> list[Plan]:
        """Submit the stage and wait for its plans."""
        micro_steps = [
            MicroStepSchedule(0, [[f"{index}-{rank}"] for rank in range(RANKS)])
            for index in range(MICRO_STEPS)
        ]
        self.controller.submit_schedule(self.name, step, stage, micro_steps)
        plans = [self._plan(step, stage, index) for index in range(MICRO_STEPS)]
        eventually(lambda: self.status(step, stage).planning_seconds > 0)
        return plans

    def report(
        self, step: int, stage: Stage, plans: Sequence[Plan], reasons: Reasons = NO_REASONS
    ) -> list[list[MicroStepReport]]:
        """Every rank reports, what it said is returned; ``reasons`` by rank and micro-step."""
        said = []
        for rank, client in enumerate(self.ranks):
            reports = []
            for index, plan in enumerate(plans):
                began = time.time_ns()
                if self.spans:
                    record(self.spans[rank], step, stage, index)
                told = report_of(plan, rank, index, reasons.get((rank, index), ""))
                reports.append(replace(told, began_unix_ns=began))
            client.report(step, stage, reports)
            said.append(reports)
        eventually(lambda: self.status(step, stage).reported == MICRO_STEPS)
        return said

    def run(self, step: int) -> None:
        """A whole step, without its release."""
        self.upload(step)
        for stage in Stage:
            self.report(step, stage, self.schedule(step, stage))

    def status(self, step: int, stage: Stage) -> StageStatus:
        held = next(held for held in self.controller.status().steps if held.step == step)
        key = (self.name, stage)
        return next(found for found in held.stages if (found.ep_group, found.stage) == key)

    def _plan(self, step: int, stage: Stage, index: int) -> Plan:
        rows = [client.wait(step, stage, index, WAIT_SECONDS) for client in self.ranks]
        first = rows[0]
        assert first is not None
        return Plan(
            home=first.home,
            load=self.loads[index],
            replica_expert=first.replica_expert,
            replica_tokens=np.stack([row.replica_tokens for row in rows if row], axis=1),
            bound=np.zeros(len(LAYERS), np.int64),
        )


def report_of(plan: Plan, rank: int, index: int, reason: str) -> MicroStepReport:
    """What a rank says that did what the plan says, or kept everything at home for a reason."""
    tokens = home_tokens(plan.load, plan.home) if reason else plan.rank_tokens()
    return MicroStepReport(
        micro_step=index,
        degraded_reason=reason,
        computed_tokens=tokens[:, rank],
        exposed_seconds=np.full(len(LAYERS), 0.001 * (rank + 1)),
        host_bytes=1000,
        peer_bytes=100,
        gradient_bytes=10,
        host_copies=5,
        peer_copies=2,
        seconds=0.5 + rank,
        exposed_gradient_seconds=0.25,
    )


def record(spans: SpanRecorder, step: int, stage: Stage, index: int) -> None:
    """A micro-step in small: each layer computes for a while, of which it waits for copies."""
    with spans.micro_step(step, stage, True, index):
        for layer in LAYERS:
            with spans.during(Activity("dispatch", "dispatch", layer)):
                began = time.monotonic_ns()
            with spans.during(Activity("compute", "forward", layer)):
                while time.monotonic_ns() < began + 1_000_000:
                    pass
                spans.waited("copies", EXPOSED_SECONDS, layer)
            spans.add("host", f"expert {layer}", began, layer, 1000)


@contextmanager
def attached(daemon: DaemonProcess, name: str, sampled: int = 0) -> Iterator[Group]:
    """All ranks of a group of its own, registered and streaming.

    sampled: spans that each records of a stage.
    """
    registrations = [replace(GROUP, ep_group=name, rank=rank) for rank in range(RANKS)]
    with ExitStack() as open_now:
        controller = open_now.enter_context(ControllerClient(daemon.address))
        spans = [SpanRecorder(ep_group=name, sampled=sampled) for _ in registrations]
        clients = [
            open_now.enter_context(RankClient(daemon.address, registration, spans=recorder))
            for registration, recorder in zip(registrations, spans, strict=True)
        ]
        yield Group(controller, name, clients, spans if sampled else ())
