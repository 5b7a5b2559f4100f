"""Ranks on two nodes that train while what joins their daemons breaks and comes back."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist

from foremoe.client.controller import ControllerClient
from foremoe.training.plan_choice import PlanSource
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.namespaces import CONTROL, DATA, Machines
from tests.runtime.nodes import Nodes
from tests.training.daemon_workers import MINI_BATCHES_PER_STEP, schedule, wait_connected
from tests.training.dense import Case
from tests.training.workers import build, forward_backward, optimizer_step

RANKS_PER_NODE = 2
STEPS = (
    "balanced",
    "link cut",
    "link still cut",
    "link mended",
    "leader killed",
    "no leader",
    "leader restarted",
    "follower restarted",
    "slow link",
)
CALM = ("balanced", "link mended", "leader restarted", "follower restarted")


@dataclass(frozen=True)
class OnNodes:
    """Puts a rank's process on its node."""

    machines: Machines
    token_file: str

    def __call__(self, rank: int) -> None:
        self.machines.enter(rank // RANKS_PER_NODE)
        os.environ |= {
            "GLOO_SOCKET_IFNAME": DATA,
            "LOCAL_WORLD_SIZE": str(RANKS_PER_NODE),
            "FOREMOE_TOKEN_FILE": self.token_file,
        }


def train_on_nodes(
    rank: int, case: Case, nodes: Nodes, machines: Machines, pids: Mapping[str, int]
) -> dict[str, Any]:
    """One RL step's update for each of ``STEPS``; outputs, gradients, records and step times.

    Rank 0 makes the faults, between steps and, where it says so, in the middle of one.
    """
    socket = nodes.sockets[rank // RANKS_PER_NODE]
    layers, session = build(case, socket)
    result: dict[str, Any] = {"outputs": [], "gradients": [], "records": {}, "seconds": {}}
    micro_steps = MINI_BATCHES_PER_STEP * case.micro_steps
    faults = Faults(nodes, machines, pids) if rank == 0 else None
    for step, name in enumerate(STEPS):
        if faults is not None:
            faults.before(name)
        dist.barrier()
        if name in CALM:
            wait_connected(session, 60.0)
        if name == "link still cut":
            assert session._client is not None
            is_near = rank < RANKS_PER_NODE
            eventually(partial(_is_connected, session._client, is_near))
            dist.barrier()
        if faults is not None and name != "no leader":
            announce(nodes, case, step, micro_steps)
        dist.barrier()
        begin = time.monotonic()
        with session.stage(step, Stage.UPDATE) as run:
            for index in range(micro_steps):
                with session.micro_step(index):
                    if faults is not None and index == 1:
                        faults.during(name)
                    output = forward_backward(case, rank, step * micro_steps + index, layers)
                    result["outputs"].append(output)
                if index % case.micro_steps == case.micro_steps - 1:
                    result["gradients"] += optimizer_step(layers, session)
        result["records"][name] = run.records
        result["seconds"][name] = time.monotonic() - begin
    session.close()
    if faults is not None:
        faults.end()
    return result


def _is_connected(client: PlanSource, expected: bool) -> bool:
    return client.connected == expected


class Faults:
    """What happens to both daemons and to the cable between them; ``pids`` has those at first."""

    def __init__(self, nodes: Nodes, machines: Machines, pids: Mapping[str, int]) -> None:
        self._nodes = nodes
        self._machines = machines
        self._pids = pids
        self._started: list[DaemonProcess] = []

    def before(self, name: str) -> None:
        """A step."""
        prefixes = [self._machines.prefix(machine) for machine in range(2)]
        if name == "link cut":
            self._machines.cut(CONTROL)
        elif name == "link mended":
            self._machines.mend(CONTROL)
        elif name == "leader restarted":
            self._started.append(self._nodes.leader(prefix=prefixes[0]).wait_serving())
        elif name == "follower restarted":
            os.kill(self._pids["follower"], signal.SIGKILL)
            self._started.append(self._nodes.follower(prefix=prefixes[1]).wait_serving())
        elif name == "slow link":
            self._machines.slow_down(CONTROL, "256kbit")

    def during(self, name: str) -> None:
        """A step's second micro-step."""
        if name == "leader killed":
            os.kill(self._pids["leader"], signal.SIGKILL)

    def end(self) -> None:
        for daemon in self._started:
            daemon.kill()


def announce(nodes: Nodes, case: Case, step: int, micro_steps: int) -> None:
    """Upload all ranks' foresight and submit the schedule, beside the leader."""
    with ControllerClient(nodes.sockets[0]) as controller:
        with controller.foresight_stream(step, case.layer_ids, case.experts, case.top_k) as stream:
            for index in range(micro_steps):
                for rank in range(case.ranks):
                    routing = case.routing(rank, step * micro_steps + index)
                    if len(routing):
                        stream.add(f"{index}-{rank}", expert_ids=routing.astype(np.uint8))
        controller.submit_schedule("ep0", step, Stage.UPDATE, schedule(case, step, micro_steps))
