"""What the processes of the job under test run: a rank, a controller, a daemon."""

import threading
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.client.controller import ControllerClient, MicroStepSchedule
from foremoe.crash_points import crash_at
from foremoe.errors import ForemoeError
from foremoe.runtime.config import RuntimeConfig
from foremoe.runtime.daemon import serve
from foremoe.runtime.log_lines import set_up_logging
from foremoe.training.attachment import AttachOptions, open_session
from foremoe.training.layer import MoELayer
from foremoe.training.micro_step import MicroStepRecord
from foremoe.vocabulary import Stage
from tests.runtime.eventually import eventually
from tests.training.dense import Case, train_dense
from tests.training.workers import forward, forward_backward, make_layer

GROUP = "ep0"
PLAN_WAIT_SECONDS = 0.2
WAIT_SECONDS = 5.0
LEARNING_RATE = 0.003  # of tests.training.dense


class Rank:
    """The case's layers on one rank, trained with SGD; homes move to where plans expect them."""

    def __init__(self, rank: int, case: Case, address: str, cache_directory: Path) -> None:
        group = dist.group.WORLD
        assert group is not None
        self._rank = rank
        self._case = case
        self._truth = train_dense(case)
        self._layers: list[MoELayer] = [make_layer(case, i, group) for i in range(case.layers)]
        parameters = [p for layer in self._layers for p in layer.parameters()]
        self._optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
        self._session = open_session(
            [layer.home_experts() for layer in self._layers],
            group,
            AttachOptions(
                address=address,
                ep_group=GROUP,
                spare_slots=case.spare_slots,
                cache_directory=cache_directory,
                plan_wait_seconds=PLAN_WAIT_SECONDS,
                wait_seconds=WAIT_SECONDS,
            ),
            optimizers=[self._optimizer],
        )
        for layer in self._layers:
            layer.session = self._session

    def reset(self) -> None:
        """Back to the first weights, wherever experts live."""
        with torch.no_grad():
            for position, layer in enumerate(self._layers):
                first = self._case.expert_weights(position)
                rows = list(layer.home_experts().experts)
                layer.gate_up.copy_(first["gate_up"][rows])
                layer.down.copy_(first["down"][rows])
                layer.router.weight.copy_(self._case.router(position))
        self._session.weights_changed()

    def connected(self) -> None:
        """Return when the plan stream is open."""
        client: Any = self._session._client
        eventually(lambda: client.connected)

    def has_plans(self, step: int) -> None:
        """Return when all plans of a step are here."""
        client: Any = self._session._client
        for stage in Stage:
            for index in range(self._case.micro_steps):
                assert client.wait(step, stage, index, 30.0) is not None

    def train(self, step: int, index: int) -> tuple[float, list[str]]:
        """An RL step, the case's mini-batch ``index``.

        How far numbers are off the dense run's, and why micro-steps ran without their plan.
        """
        records: list[MicroStepRecord] = []
        first = index * self._case.micro_steps
        worst = 0.0
        for stage in Stage:
            run = forward_backward if stage is Stage.UPDATE else _forward_only
            with self._session.stage(step, stage) as under_way:
                for micro_step in range(self._case.micro_steps):
                    with self._session.micro_step(micro_step):
                        output = run(self._case, self._rank, first + micro_step, self._layers)
                    worst = max(worst, self._output_error(output, first + micro_step))
            records += under_way.records
        worst = max(worst, self._gradient_error(index))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._session.weights_changed()
        return worst, [record.degraded_reason for record in records if not record.balanced]

    def crash_at(self, where: str) -> None:
        crash_at(where)

    def close(self) -> None:
        self._session.close()

    def _output_error(self, output: Tensor, index: int) -> float:
        before = sum(len(self._case.inputs(rank, index)) for rank in range(self._rank))
        expected = self._truth["outputs"][index][before : before + len(output)]
        return _distance(output, expected)

    def _gradient_error(self, index: int) -> float:
        """Of the mini-batch's gradients on this rank; sums the routers' over the ranks."""
        expected = iter(self._truth["gradients"][3 * self._case.layers * index :])
        worst = 0.0
        for layer in self._layers:
            router = layer.router.weight
            router.grad = torch.zeros_like(router) if router.grad is None else router.grad
            dist.all_reduce(router.grad)
            worst = max(worst, _distance(router.grad, next(expected)))
            rows = list(layer.home_experts().experts)
            for parameter in (layer.gate_up, layer.down):
                actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                worst = max(worst, _distance(actual, next(expected)[rows]))
        return worst


def rank_main(
    connection: Connection, rank: int, case: Case, address: str, caches: Path, rendezvous: Path
) -> None:
    """Attach, say so, then obey."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=case.ranks,
        timeout=timedelta(seconds=30),
    )
    worker = Rank(rank, case, address, caches)
    _obey(connection, worker)
    dist.destroy_process_group()


class Controller:
    """Sends foresight and schedules; a daemon that is not there is no reason to stop."""

    def __init__(self, case: Case, address: str) -> None:
        self._case = case
        self._address = address
        self._client = ControllerClient(address, timeout_seconds=5.0)

    def connected(self) -> None:
        """Return when the leader answers."""
        with ControllerClient(self._address, retry_seconds=30.0) as patient:
            patient.status()
        self._client.close()  # the next call finds it at once

    def announce(self, step: int, index: int, pause_seconds: float = 0.0) -> str:
        """Foresight and both stages' schedules of an RL step; empty, or what went wrong."""
        try:
            self._upload(step, index, pause_seconds)
            self._schedule(step, index)
        except ForemoeError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def wait_planned(self, step: int) -> None:
        for stage in Stage:
            self._client.wait_planned(GROUP, step, stage, 30.0)

    def release(self, steps: list[int]) -> str:
        """End them; empty, or what went wrong."""
        try:
            for step in steps:
                self._client.release_step(step)
        except ForemoeError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def check_empty(self) -> None:
        """Nothing is held any more but the homes of one group."""
        homes = self._case.layers * self._case.experts * 4
        eventually(lambda: self._client.status().stored_bytes <= homes)
        assert self._client.status().steps == ()

    def close(self) -> None:
        self._client.close()

    def _upload(self, step: int, index: int, pause_seconds: float) -> None:
        case, held = self._case, self._client.status().steps
        names = self._names(index)
        for found in held:  # an upload that broke off has left nothing
            assert found.step != step or found.sequences == len(names)
        pause = threading.Event()
        with self._client.foresight_stream(
            step, case.layer_ids, case.experts, case.top_k
        ) as stream:
            for name, (rank, micro_step) in names.items():
                routing = case.routing(rank, micro_step)
                stream.add(name, expert_ids=routing.astype(np.uint8))
                pause.wait(pause_seconds)

    def _schedule(self, step: int, index: int) -> None:
        names = self._names(index)
        first = index * self._case.micro_steps
        schedule = [
            MicroStepSchedule(
                0,
                [
                    [name for name, place in names.items() if place == (rank, micro_step)]
                    for rank in range(self._case.ranks)
                ],
            )
            for micro_step in range(first, first + self._case.micro_steps)
        ]
        for stage in Stage:
            self._client.submit_schedule(GROUP, step, stage, schedule)

    def _names(self, index: int) -> dict[str, tuple[int, int]]:
        """The mini-batch's sequences: (rank, micro-step) by id."""
        first = index * self._case.micro_steps
        return {
            f"{micro_step}-{rank}": (rank, micro_step)
            for micro_step in range(first, first + self._case.micro_steps)
            for rank in range(self._case.ranks)
            if len(self._case.inputs(rank, micro_step))
        }


def controller_main(connection: Connection, case: Case, address: str) -> None:
    _obey(connection, Controller(case, address))


def daemon_main(connection: Connection, config: RuntimeConfig) -> None:
    """Serve; crash points that arrive are armed."""

    def listen() -> None:
        while True:
            crash_at(connection.recv()[1])
            connection.send(None)

    threading.Thread(target=listen, daemon=True).start()
    set_up_logging("text", "info")
    serve(config)


def _obey(connection: Connection, worker: Any) -> None:
    """Answer (method, arguments...) messages until ``close``."""
    connection.send("ready")
    method = ""
    while method != "close":
        method, *arguments = connection.recv()
        connection.send(getattr(worker, method)(*arguments))


def _forward_only(case: Case, rank: int, index: int, layers: list[MoELayer]) -> Tensor:
    with torch.no_grad():
        return forward(case, rank, index, layers)


def _distance(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.detach() - expected).abs().max()) if actual.numel() else 0.0
