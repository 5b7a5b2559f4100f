"""Ranks that train with a real daemon, lose it in the middle of a step and find it again."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from foremoe.client.controller import ControllerClient, MicroStepSchedule
from foremoe.errors import UnavailableError
from foremoe.training.session import RankSession
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.training.dense import Case
from tests.training.workers import build, forward_backward, optimizer_step

STEPS = ("balanced", "killed in the middle", "no daemon", "restarted")
MINI_BATCHES_PER_STEP = 2


class Kept(logging.Handler):
    """What the session logs: messages and fields."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, dict[str, Any]]] = []
        session_log = logging.getLogger("foremoe.training.session")
        session_log.setLevel(logging.INFO)
        session_log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.getMessage(), getattr(record, "fields", {})))


def train_through_daemon_loss(rank: int, case: Case, folder: Path, pid: int) -> dict[str, Any]:
    """One RL step's update for each of ``STEPS``; outputs, gradients and records."""
    address = str(folder / "s")
    layers, session = build(case, address)
    controller = ControllerClient(address, timeout_seconds=5.0)
    result: dict[str, Any] = {"outputs": [], "gradients": [], "records": {}, "log": Kept().lines}
    micro_steps = MINI_BATCHES_PER_STEP * case.micro_steps
    restarted = None
    for step, name in enumerate(STEPS):
        if name == "restarted" and rank == 0:
            restarted = DaemonProcess(folder).wait_serving()
        if name == "restarted":
            wait_connected(session)
        if name != "no daemon":
            announce(rank, case, step, micro_steps, controller)
        with session.stage(step, Stage.UPDATE) as run:
            for index in range(micro_steps):
                with session.micro_step(index):
                    if (name, index, rank) == ("killed in the middle", 1, 0):
                        os.kill(pid, signal.SIGKILL)
                    output = forward_backward(case, rank, step * micro_steps + index, layers)
                    result["outputs"].append(output)
                if index % case.micro_steps == case.micro_steps - 1:
                    result["gradients"] += optimizer_step(layers, session)
        result["records"][name] = run.records
    session.close()
    controller.close()
    if restarted is not None:
        assert restarted.terminate() == 0
    return result


def announce(
    rank: int, case: Case, step: int, micro_steps: int, controller: ControllerClient
) -> None:
    """Upload this rank's foresight; rank 0 submits the schedule once all have."""
    with controller.foresight_stream(step, case.layer_ids, case.experts, case.top_k) as stream:
        for index in range(micro_steps):
            routing = case.routing(rank, step * micro_steps + index)
            if len(routing):
                stream.add(f"{index}-{rank}", expert_ids=routing.astype(np.uint8))
    dist.barrier()
    if rank == 0:
        controller.submit_schedule("ep0", step, Stage.UPDATE, schedule(case, step, micro_steps))
    dist.barrier()


def schedule(case: Case, step: int, micro_steps: int) -> list[MicroStepSchedule]:
    """One sequence a rank and micro-step, named after both; none where the case has no tokens."""
    return [
        MicroStepSchedule(
            mini_batch=index // case.micro_steps,
            ranks=[
                [f"{index}-{r}"] if len(case.inputs(r, step * micro_steps + index)) else []
                for r in range(case.ranks)
            ],
        )
        for index in range(micro_steps)
    ]


def wait_connected(session: RankSession, seconds: float = 30.0) -> None:
    dist.barrier()
    deadline = time.monotonic() + seconds
    assert session._client is not None
    while not session._client.connected:
        if time.monotonic() > deadline:
            raise UnavailableError(f"the daemon was not found again within {seconds} s")
        time.sleep(0.01)
    dist.barrier()
