"""A day of RL steps in little time: short steps one after another, what the daemon holds watched.

Four jobs of two ranks run steps of their own: six sequences, two stages of three micro-steps, all
reported. Now and then a rank comes back with a new connection, and an upload is given up.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio
import numpy as np

from benchmarks.runtime_process import MeasuredDaemon
from foremoe.client import MicroStepReport, MicroStepSchedule, RankRegistration
from foremoe.client.upload_messages import UploadMessages
from foremoe.rpc.foresight import UploadHeader
from foremoe.rpc.registration import encode_registration
from foremoe.rpc.report import encode_report
from foremoe.rpc.schedule import encode_micro_steps
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub
from foremoe.rpc.v1.rank_pb2 import ReportStageRequest, StreamPlansRequest
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceStub
from foremoe.rpc.v1.schedule_pb2 import ReleaseStepRequest, SubmitScheduleRequest
from foremoe.rpc.v1.schedule_pb2_grpc import ScheduleServiceStub

JOBS, RANKS, MICRO_STEPS = 4, 2, 3
LAYERS, EXPERTS, TOP_K, TOKENS = (1, 3, 4), 8, 2, 64
STAGES = (1, 2)  # recompute, update
SCHEDULE = encode_micro_steps(
    [
        MicroStepSchedule(0, [[f"{index}-{rank}"] for rank in range(RANKS)])
        for index in range(MICRO_STEPS)
    ]
)
REPORTS = [
    encode_report(MicroStepReport(index, "", np.full(3, 128), np.zeros(3), 1000, 100, seconds=0.1))
    for index in range(MICRO_STEPS)
]
STEPS_A_CONNECTION = 50
SAMPLES = 100


@dataclass(frozen=True, slots=True)
class Soak:
    """Samples over the steps, the first tenth left out: bytes and descriptors of the daemon."""

    steps: int
    seconds: float
    memory_bytes: Sequence[int]
    descriptors: Sequence[int]

    @property
    def memory_growth(self) -> float:
        """Mean of the last quarter of the samples / mean of the first."""
        quarter = max(len(self.memory_bytes) // 4, 1)
        return float(np.mean(self.memory_bytes[-quarter:]) / np.mean(self.memory_bytes[:quarter]))

    @property
    def memory_range(self) -> float:
        """Most / least."""
        return max(self.memory_bytes) / min(self.memory_bytes)

    @property
    def descriptor_growth(self) -> int:
        """Fewest of the last quarter - of the first: connections come and go in between."""
        quarter = max(len(self.descriptors) // 4, 1)
        return min(self.descriptors[-quarter:]) - min(self.descriptors[:quarter])


def run(daemon: MeasuredDaemon, steps: int) -> Soak:
    """``steps`` in all, over the jobs."""
    return asyncio.run(_run(daemon, steps))


async def _run(daemon: MeasuredDaemon, steps: int) -> Soak:
    done = 0
    memory: list[int] = []
    descriptors: list[int] = []
    every = max(steps // SAMPLES, 1)
    began = time.monotonic()

    async def job(number: int) -> None:
        nonlocal done
        step = number  # jobs share no step
        while done < steps:
            async with _Job(daemon.address, f"job-{number}") as connected:
                for _ in range(STEPS_A_CONNECTION):
                    await connected.run(step)
                    step += JOBS
                    done += 1
                    if done % every == 0:
                        memory.append(daemon.resident_bytes())
                        descriptors.append(daemon.descriptors())

    await asyncio.gather(*(job(number) for number in range(JOBS)))
    warm = len(memory) // 10
    return Soak(done, time.monotonic() - began, memory[warm:], descriptors[warm:])


class _Job:
    """The controller and the ranks of one job, on one connection."""

    def __init__(self, address: str, name: str) -> None:
        self._name = name
        # Jobs of one process would share a connection otherwise.
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.aio.insecure_channel(f"unix:{address}", options=options)
        generator = np.random.default_rng(0)
        shape = (TOKENS, len(LAYERS), EXPERTS)
        self._ids = generator.random(shape).argsort(axis=-1)[..., :TOP_K].astype(np.uint8)

    async def __aenter__(self) -> "_Job":
        self._ranks: Any = RankServiceStub(self._channel)
        self._schedules: Any = ScheduleServiceStub(self._channel)
        self._foresight: Any = ForesightServiceStub(self._channel)
        self._streams = []
        group = RankRegistration(self._name, 0, RANKS, RANKS, 1, EXPERTS, LAYERS)
        for rank in range(RANKS):
            await self._ranks.RegisterRank(encode_registration(replace(group, rank=rank)))
            request = StreamPlansRequest(ep_group=self._name, rank=rank)
            self._streams.append(self._ranks.StreamPlans(request))
        return self

    async def __aexit__(self, *_: object) -> None:
        given_up = self._foresight.UploadForesight(self._messages(0, commit=False))
        await given_up.wait_for_connection()
        given_up.cancel()
        for stream in self._streams:
            stream.cancel()
        await self._channel.close()

    async def run(self, step: int) -> None:
        await self._foresight.UploadForesight(self._messages(step))
        for stage in STAGES:
            await self._schedules.SubmitSchedule(
                SubmitScheduleRequest(
                    ep_group=self._name,
                    step=step,
                    stage=stage,  # type: ignore[arg-type]
                    micro_steps=SCHEDULE,
                )
            )
            await asyncio.gather(*(self._follow(rank, step, stage) for rank in range(RANKS)))
        await self._schedules.ReleaseStep(ReleaseStepRequest(step=step))

    async def _follow(self, rank: int, step: int, stage: int) -> None:
        for index in range(MICRO_STEPS):
            plan = await self._streams[rank].read()
            assert (plan.step, plan.stage, plan.micro_step) == (step, stage, index)
        await self._ranks.ReportStage(
            ReportStageRequest(
                ep_group=self._name,
                rank=rank,
                step=step,
                stage=stage,  # type: ignore[arg-type]
                micro_steps=REPORTS,
            )
        )

    async def _messages(self, step: int, commit: bool = True) -> AsyncIterator[Any]:
        upload = UploadMessages(UploadHeader(step, LAYERS, EXPERTS, TOP_K), send_ids=False)
        yield upload.header()
        for index in range(MICRO_STEPS):
            for rank in range(RANKS):
                for message in upload.chunks(f"{index}-{rank}", None, self._ids, None):
                    yield message
        if commit:
            yield upload.commit()
        else:
            await asyncio.sleep(60)
