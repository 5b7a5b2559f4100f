"""Ranks that train one real step with a daemon, to be looked at afterwards."""

from typing import Any

import numpy as np
import torch.distributed as dist

from foremoe.client import ControllerClient, MicroStepSchedule
from foremoe.vocabulary import Stage
from tests.training.dense import Case
from tests.training.workers import build, forward_backward, optimizer_step

EP_GROUP = "ep0"
STEP = 5


def train_one_step(rank: int, case: Case, address: str) -> dict[str, Any]:
    """One update stage of a mini-batch; what this rank's session recorded."""
    layers, session = build(case, address)
    with ControllerClient(address) as controller:
        _announce(rank, case, controller)
    with session.stage(STEP, Stage.UPDATE) as run:
        for index in range(case.total):
            with session.micro_step(index):
                forward_backward(case, rank, index, layers)
        optimizer_step(layers, session)
    session.close()
    return {
        "tokens": sum(int(record.computed_tokens.sum()) for record in run.records),
        "balanced": [record.balanced for record in run.records],
        "copies": sum(record.host_copies + record.peer_copies for record in run.records),
        "host_bytes": sum(record.host_bytes for record in run.records),
        "exposed_seconds": sum(
            float(record.exposed_seconds.sum()) + record.exposed_gradient_seconds
            for record in run.records
        ),
        "seconds": sum(record.seconds for record in run.records),
    }


def _announce(rank: int, case: Case, controller: ControllerClient) -> None:
    """Upload this rank's foresight; rank 0 submits the schedule once all have."""
    with controller.foresight_stream(STEP, case.layer_ids, case.experts, case.top_k) as stream:
        for index in range(case.total):
            if (routing := case.routing(rank, index)).size:
                stream.add(f"{index}-{rank}", expert_ids=routing.astype(np.uint8))
    dist.barrier()
    if rank == 0:
        micro_steps = [
            MicroStepSchedule(
                0, [[f"{m}-{r}"] if case.routing(r, m).size else [] for r in range(case.ranks)]
            )
            for m in range(case.total)
        ]
        controller.submit_schedule(EP_GROUP, STEP, Stage.UPDATE, micro_steps)
    dist.barrier()
