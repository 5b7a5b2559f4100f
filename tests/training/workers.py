"""What rank processes run in the tests of the torch side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from foremoe.client.rank import MicroStepReport, RankPlan
from foremoe.planner.plan import placement_digest
from foremoe.training.attachment import AttachOptions, open_session
from foremoe.training.layer import MoELayer
from foremoe.training.session import RankSession
from foremoe.vocabulary import Stage
from tests.training.dense import Case

STEP = 7


class RandomPlans:
    """Valid placements with arbitrary quotas, the same placement on every rank."""

    connected = True

    def __init__(self, case: Case, rank: int, missing: dict[int, set[int]] | None = None) -> None:
        """missing: micro-steps for which some ranks hold no plan."""
        self._case = case
        self._rank = rank
        self._missing = (missing or {}).get(rank, set())
        self.reports: list[MicroStepReport] = []

    def wait(
        self, step: int, stage: Stage, micro_step: int, timeout_seconds: float
    ) -> RankPlan | None:
        del timeout_seconds
        if micro_step >= self._case.total or micro_step in self._missing:
            return None
        case = self._case
        home = np.repeat(np.arange(case.ranks, dtype=np.int32), case.experts // case.ranks)
        homes = np.tile(home, (case.layers, 1))
        layers = np.array(case.layer_ids, np.int32)
        replicas = self._placement(micro_step, home)
        quota = np.random.default_rng([case.seed, self._rank, micro_step]).integers(
            0, 9, replicas.shape
        )
        return RankPlan(
            step=step,
            stage=stage,
            micro_step=micro_step,
            micro_steps=case.total,
            mini_batch=micro_step // case.micro_steps,
            layers=layers,
            home=homes,
            replica_expert=replicas,
            replica_tokens=np.where(replicas >= 0, quota, 0),
            digest=placement_digest(step, stage, micro_step, layers, homes, replicas),
        )

    def _placement(self, micro_step: int, home: NDArray[np.int32]) -> NDArray[np.int32]:
        case = self._case
        generator = np.random.default_rng([case.seed, 1234, micro_step])
        placement = np.full((case.layers, case.ranks, case.spare_slots), -1, np.int32)
        for layer in range(case.layers):
            for rank in range(case.ranks):
                foreign = generator.permutation(np.flatnonzero(home != rank))[: case.spare_slots]
                used = generator.random(len(foreign)) < 0.8
                placement[layer, rank, : len(foreign)] = np.where(used, foreign, -1)
        return placement

    def report(self, step: int, stage: Stage, micro_steps: Sequence[MicroStepReport]) -> None:
        assert step == STEP
        assert stage in Stage
        self.reports += micro_steps

    def forget_before(self, step: int) -> None: ...

    def close(self) -> None: ...


def train(rank: int, case: Case, missing: dict[int, set[int]] | None = None) -> dict[str, Any]:
    """Train the case's layers on this rank with random plans; outputs, gradients and reports."""
    layers, session = build(case, None)
    plans = session._client = RandomPlans(case, rank, missing)
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    with session.stage(STEP, Stage.UPDATE) as run:
        for index in range(case.total):
            with session.micro_step(index):
                outputs.append(forward_backward(case, rank, index, layers))
            if index % case.micro_steps == case.micro_steps - 1:
                gradients += optimizer_step(layers, session)
    session.close()
    return {
        "outputs": outputs,
        "gradients": gradients,
        "records": run.records,
        "reports": len(plans.reports),
    }


def recompute_twice(rank: int, case: Case) -> list[list[Tensor]]:
    """Two forwards in each micro-step of a recompute stage: their outputs."""
    layers, session = build(case, None)
    plans = RandomPlans(case, rank)
    session._client = plans
    outputs = []
    with torch.no_grad(), session.stage(STEP, Stage.RECOMPUTE) as run:
        for index in range(case.micro_steps):
            with session.micro_step(index):
                outputs.append([forward(case, rank, index, layers) for _ in range(2)])
    assert all(record.balanced for record in run.records)
    session.close()
    return outputs


def build(case: Case, address: str | None) -> tuple[list[MoELayer], RankSession]:
    """The case's layers on this rank, joined to the daemon at ``address`` if there is one."""
    group = dist.group.WORLD
    assert group is not None
    layers = [_layer(case, position, group) for position in range(case.layers)]
    options = AttachOptions(address=address, spare_slots=case.spare_slots)
    session = open_session([layer.home_experts() for layer in layers], group, options)
    for layer in layers:
        layer.session = session
    return layers, session


def _layer(case: Case, position: int, group: dist.ProcessGroup) -> MoELayer:
    layer = MoELayer(
        case.layer_ids[position], case.hidden, case.expert_size, case.experts, case.top_k, group
    ).double()
    weights = case.expert_weights(position)
    with torch.no_grad():
        layer.router.weight.copy_(case.router(position))
        layer.gate_up.copy_(weights["gate_up"][layer.owned.start : layer.owned.stop])
        layer.down.copy_(weights["down"][layer.owned.start : layer.owned.stop])
    return layer


def forward(case: Case, rank: int, index: int, layers: list[MoELayer]) -> Tensor:
    hidden = case.inputs(rank, index)
    routing = torch.from_numpy(case.actual_routing(rank, index))
    for position, layer in enumerate(layers):
        hidden = hidden + layer(hidden, routing[:, position])
    return hidden


def forward_backward(case: Case, rank: int, index: int, layers: list[MoELayer]) -> Tensor:
    hidden = forward(case, rank, index, layers)
    (hidden**2).sum().backward()
    return hidden.detach()


def optimizer_step(layers: list[MoELayer], session: RankSession) -> list[Tensor]:
    gradients = []
    for layer in layers:
        for parameter in (layer.router.weight, layer.gate_up, layer.down):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter is layer.router.weight:
                dist.all_reduce(parameter.grad)
            gradients.append(parameter.grad.clone())
            with torch.no_grad():
                parameter -= 0.003 * parameter.grad
            parameter.grad = None
    session.weights_changed()
    return gradients
