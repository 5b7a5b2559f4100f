"""What rank processes run in the tests of the torch side."""

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foremoe.client.rank import MicroStepReport, RankPlan
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.plan import placement_digest
from foremoe.training.attachment import AttachOptions, open_session
from foremoe.training.layer import MoELayer
from foremoe.training.session import RankSession
from foremoe.transfer.peer_rounds import Wire
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import slot_bytes
from foremoe.vocabulary import DegradedReason, Stage
from tests.training.dense import Case
from tests.transfer.faults import slow_reads
from tests.transfer.stand_in import transports_of_cuda

STEP = 7


@dataclass(frozen=True)
class Way:
    """How a case is trained; the numbers must not depend on it.

    frames: layers that have slots at a time, None for all of them. order: of the micro-steps of a
    mini-batch. missing: micro-steps for which some ranks hold no plan. stay: one placement for a
    whole mini-batch. checkpointed: forward is run again in backward. twice: forward is run once
    more before it, for nothing. verify: checksums. main_grad: where gradients are summed.
    as_on_cuda: by the transports of CUDA, on the CPU. no_cache: why the host cache cannot be made.
    slow_seconds: what every copy and gradient into rank 0 takes longer, by either path. device: of
    weights and compute.
    """

    frames: int | None = None
    order: tuple[int, ...] = ()
    missing: dict[int, set[int]] = field(default_factory=dict)
    stay: bool = False
    checkpointed: bool = False
    twice: bool = False
    verify: bool = False
    main_grad: bool = False
    as_on_cuda: bool = False
    no_cache: Literal["", "budget", "full"] = ""
    slow_seconds: float = 0.0
    device: str = "cpu"

    def micro_steps(self, case: Case) -> list[list[int]]:
        """In the order in which they are run, by mini-batch."""
        order = self.order or range(case.micro_steps)
        starts = range(0, case.total, case.micro_steps)
        return [[start + index for index in order] for start in starts]

    def limit_bytes(self, case: Case) -> int | None:
        if self.frames is None:
            return None
        shapes = {n: tuple(w.shape[1:]) for n, w in case.expert_weights(0).items()}
        slab = SlabLayout.from_shapes(shapes, torch.float64)
        each = self.frames * slot_bytes(slab, training=True) + slab.gradient_layout().nbytes
        return case.spare_slots * each


PLAIN = Way()


class RandomPlans:
    """Valid placements with arbitrary quotas, the same placement on every rank.

    Some replicas get no tokens from anyone.
    """

    connected = True
    missing_reason = DegradedReason.NO_PLAN

    def __init__(self, case: Case, rank: int, way: Way = PLAIN) -> None:
        self._case = case
        self._rank = rank
        self._missing = way.missing.get(rank, set())
        self._stay = way.stay
        self.home = contiguous_homes(case.layers, case.experts, case.ranks)
        self.reports: list[MicroStepReport] = []

    def wait(
        self, step: int, stage: Stage, micro_step: int, timeout_seconds: float
    ) -> RankPlan | None:
        del timeout_seconds
        if micro_step >= self._case.total or micro_step in self._missing:
            return None
        case = self._case
        layers = np.array(case.layer_ids, np.int32)
        drawn = micro_step - micro_step % case.micro_steps if self._stay else micro_step
        replicas = self._placement(drawn)
        quota = np.random.default_rng([case.seed, self._rank, micro_step]).integers(
            0, 9, replicas.shape
        )
        quota[np.random.default_rng([case.seed, micro_step]).random(quota.shape) < 0.3] = 0
        return RankPlan(
            step=step,
            stage=stage,
            micro_step=micro_step,
            micro_steps=case.total,
            mini_batch=micro_step // case.micro_steps,
            layers=layers,
            home=self.home,
            replica_expert=replicas,
            replica_tokens=np.where(replicas >= 0, quota, 0),
            digest=placement_digest(step, stage, micro_step, layers, self.home, replicas),
        )

    def _placement(self, micro_step: int) -> NDArray[np.int32]:
        case = self._case
        generator = np.random.default_rng([case.seed, 1234, micro_step])
        placement = np.full((case.layers, case.ranks, case.spare_slots), -1, np.int32)
        for layer in range(case.layers):
            for rank in range(case.ranks):
                foreign = generator.permutation(np.flatnonzero(self.home[layer] != rank))
                foreign = foreign[: case.spare_slots]
                used = generator.random(len(foreign)) < 0.8
                placement[layer, rank, : len(foreign)] = np.where(used, foreign, -1)
        return placement

    def report(self, step: int, stage: Stage, micro_steps: Sequence[MicroStepReport]) -> None:
        assert step == STEP
        assert stage in Stage
        self.reports += micro_steps

    def forget_before(self, step: int) -> None: ...

    def homes_moved(self, home: NDArray[np.int32]) -> None:
        self.home = home

    def close(self) -> None: ...


def train(rank: int, case: Case, way: Way = PLAIN) -> dict[str, Any]:
    """Train the case's layers on this rank with random plans; outputs, gradients and reports."""
    layers, session = build(case, None, way)
    plans = session._client = RandomPlans(case, rank, way)
    if way.slow_seconds:
        pretend_pace(session, 0.001 * (rank + 1))
        if rank == 0:
            slow_down(session, way.slow_seconds)
    outputs: dict[int, Tensor] = {}
    gradients: list[Tensor] = []
    with session.stage(STEP, Stage.UPDATE) as run:
        for mini_batch in way.micro_steps(case):
            for index in mini_batch:
                with session.micro_step(index):
                    outputs[index] = forward_backward(case, rank, index, layers, way)
            gradients += optimizer_step(layers, session)
    session.close()
    return {
        "outputs": [outputs[index].cpu() for index in range(case.total)],
        "gradients": [gradient.cpu() for gradient in gradients],
        "records": run.records,
        "reports": len(plans.reports),
    }


def pretend_pace(session: RankSession, seconds: float) -> None:
    """Each hook point is ``seconds`` after the one before, however busy this machine is."""
    take = session._clock.take

    def pretended() -> NDArray[np.float64]:
        measured = take()
        measured[:, :-1][measured[:, :-1] > 0] = seconds
        return measured

    session._clock.take = pretended  # type: ignore[method-assign]


def slow_down(session: RankSession, seconds: float) -> None:
    """Everything that comes into this rank takes longer."""
    receive, cache = Wire.receive, session._engine._cache
    assert cache is not None
    slow_reads(cache, seconds)

    def slowly(*arguments: Any) -> list[Any]:
        time.sleep(seconds)
        return receive(*arguments)

    Wire.receive = slowly  # type: ignore[method-assign]


def train_each(rank: int, case: Case, ways: Sequence[Way]) -> list[dict[str, Any]]:
    """``train`` in each way, one after the other."""
    return [train(rank, case, way) for way in ways]


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


def build(case: Case, address: str | None, way: Way = PLAIN) -> tuple[list[MoELayer], RankSession]:
    """The case's layers on this rank, joined to the daemon at ``address`` if there is one."""
    group = dist.group.WORLD
    assert group is not None
    on_cuda = torch.device(way.device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(way.device)
    layers = [make_layer(case, position, group).to(way.device) for position in range(case.layers)]
    if way.main_grad:
        for layer in layers:
            for parameter in (layer.gate_up, layer.down):
                use_main_grad(parameter)
    options = AttachOptions(
        address=address,
        spare_slots=case.spare_slots,
        limit_bytes=way.limit_bytes(case),
        verify_copies=way.verify,
        cache_limit_bytes=100 if way.no_cache == "budget" else None,
        untested_cuda=on_cuda,
    )
    with (
        largest_file(100_000) if way.no_cache == "full" else nullcontext(),
        transports_of_cuda() if way.as_on_cuda else nullcontext(),
    ):
        session = open_session([layer.home_experts() for layer in layers], group, options)
    for layer in layers:
        layer.session = session
    return layers, session


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """As if the tmpfs had no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def make_layer(case: Case, position: int, group: dist.ProcessGroup) -> MoELayer:
    layer = MoELayer(
        case.layer_ids[position], case.hidden, case.expert_size, case.experts, case.top_k, group
    ).double()
    weights = case.expert_weights(position)
    with torch.no_grad():
        layer.router.weight.copy_(case.router(position))
        layer.gate_up.copy_(weights["gate_up"][layer.owned.start : layer.owned.stop])
        layer.down.copy_(weights["down"][layer.owned.start : layer.owned.stop])
    return layer


def use_main_grad(parameter: torch.nn.Parameter) -> None:
    """Sum gradients as Megatron does: in ``main_grad``, and ``grad`` is none."""
    main_grad = torch.zeros_like(parameter)
    parameter.main_grad = main_grad  # type: ignore[attr-defined]

    def accumulate(leaf: Tensor) -> None:
        assert leaf.grad is not None
        main_grad.add_(leaf.grad)
        leaf.grad = None

    parameter.register_post_accumulate_grad_hook(accumulate)


def forward(case: Case, rank: int, index: int, layers: list[MoELayer], way: Way = PLAIN) -> Tensor:
    hidden = case.inputs(rank, index).to(way.device)
    routing = torch.from_numpy(case.actual_routing(rank, index)).to(way.device)
    for position, layer in enumerate(layers):
        if way.checkpointed:
            hidden = hidden.requires_grad_()
            run: Any = checkpoint
            hidden = hidden + run(layer, hidden, routing[:, position], use_reentrant=False)
        else:
            hidden = hidden + layer(hidden, routing[:, position])
    return hidden


def forward_backward(
    case: Case, rank: int, index: int, layers: list[MoELayer], way: Way = PLAIN
) -> Tensor:
    hidden = forward(case, rank, index, layers, way)
    if way.twice:
        with torch.no_grad():
            assert torch.allclose(forward(case, rank, index, layers), hidden, rtol=0, atol=1e-12)
    (hidden**2).sum().backward()
    return hidden.detach()


def optimizer_step(layers: list[MoELayer], session: RankSession) -> list[Tensor]:
    gradients = []
    for layer in layers:
        for parameter in (layer.router.weight, layer.gate_up, layer.down):
            total = getattr(parameter, "main_grad", parameter.grad)
            if total is None:
                total = torch.zeros_like(parameter)
            if parameter is layer.router.weight:
                dist.all_reduce(total)
            gradients.append(total.clone())
            with torch.no_grad():
                parameter -= 0.003 * total
            parameter.grad = None
            total.zero_()
    session.weights_changed()
    return gradients
