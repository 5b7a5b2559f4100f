"""Simulated ranks: open plan streams, a note of when each plan came, a report of each stage."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from benchmarks.runtime_load import (
    GROUP,
    LAYERS,
    MICRO_STEPS,
    NICENESS,
    PROCESSES,
    RANKS,
    start,
)
from foremoe.client import MicroStepReport
from foremoe.rpc.registration import encode_registration
from foremoe.rpc.report import encode_report
from foremoe.rpc.v1.rank_pb2 import ReportStageRequest, StreamPlansRequest, StreamPlansResponse
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceStub

Stage = tuple[int, int]  # step, stage on the wire


@dataclass(frozen=True, slots=True, eq=False)
class StageTimes:
    """When the plans of a stage came, in seconds after its submission: ``[P, M]``."""

    arrivals: NDArray[np.float64]

    @property
    def first(self) -> NDArray[np.float64]:
        """On each rank."""
        return self.arrivals[:, 0]

    @property
    def last(self) -> float:
        """The whole stage on all ranks."""
        return float(self.arrivals.max())

    def intervals(self) -> NDArray[np.float64]:
        """Between one micro-step's plan and the next, each on all ranks: ``[M - 1]``."""
        return np.diff(self.arrivals.max(axis=0))

    def ahead(self, pace_seconds: float) -> tuple[int, float]:
        """Plans beyond the next micro-step's that are there when it begins, and time waited.

        Ranks begin together, wait for their plans, and take ``pace_seconds`` for a micro-step. The
        fewest over the micro-steps but the first, which is waited for, and the last two, beyond
        which there is none or one.
        """
        here = self.arrivals.max(axis=0)
        now, waited, fewest = float(here[0]), 0.0, len(here)
        for index in range(1, len(here)):
            now += pace_seconds
            waited += max(float(here[index]) - now, 0.0)
            now = max(now, float(here[index]))
            if index < len(here) - 2:
                fewest = min(fewest, int(np.count_nonzero(here <= now)) - index - 1)
        return fewest, waited


class Ranks:
    """All ranks of the group, in a few processes."""

    def __init__(self, address: str) -> None:
        share = RANKS // PROCESSES
        self._links = [
            start(_follow, address, range(index * share, (index + 1) * share))
            for index in range(PROCESSES)
        ]

    def wait(self, step: int, stage: int, submitted: float) -> StageTimes:
        """Return when every rank has all plans of the stage and has reported it."""
        rows: dict[int, list[float]] = {}
        for link in self._links:
            found_step, found_stage, found = link.recv()
            assert (found_step, found_stage) == (step, stage), "stages are run one after another"
            rows |= found
        return StageTimes(np.array([rows[rank] for rank in range(RANKS)]) - submitted)

    def close(self) -> None:
        for link in self._links:
            link.send(None)


def _follow(link: Connection, address: str, ranks: range) -> None:
    os.nice(NICENESS)
    asyncio.run(_Process(link, ranks).run(address))


class _Process:
    def __init__(self, link: Connection, ranks: Sequence[int]) -> None:
        self._link, self._ranks = link, ranks
        self._arrivals: dict[Stage, dict[int, list[float]]] = {}
        self._reported: dict[Stage, int] = {}

    async def run(self, address: str) -> None:
        async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
            stub: Any = RankServiceStub(channel)
            for rank in self._ranks:
                await stub.RegisterRank(encode_registration(replace(GROUP, rank=rank)))
            streams = [asyncio.create_task(self._read(stub, rank)) for rank in self._ranks]
            self._link.send("ready")
            await asyncio.to_thread(self._link.recv)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    async def _read(self, stub: Any, rank: int) -> None:
        stream = stub.StreamPlans(StreamPlansRequest(ep_group=GROUP.ep_group, rank=rank))
        message: StreamPlansResponse
        async for message in stream:
            now = time.monotonic()
            stage = (message.step, int(message.stage))
            times = self._arrivals.setdefault(stage, {}).setdefault(rank, [0.0] * MICRO_STEPS)
            times[message.micro_step] = now
            if 0.0 not in times:
                await self._report(stub, rank, stage)

    async def _report(self, stub: Any, rank: int, stage: Stage) -> None:
        reports = [
            MicroStepReport(index, "", np.full(LAYERS, 131_072), np.zeros(LAYERS), seconds=1.0)
            for index in range(MICRO_STEPS)
        ]
        await stub.ReportStage(
            ReportStageRequest(
                ep_group=GROUP.ep_group,
                rank=rank,
                step=stage[0],
                stage=stage[1],  # type: ignore[arg-type]
                micro_steps=[encode_report(report) for report in reports],
            )
        )
        self._reported[stage] = self._reported.get(stage, 0) + 1
        if self._reported[stage] == len(self._ranks):
            self._link.send((*stage, self._arrivals.pop(stage)))
            del self._reported[stage]
