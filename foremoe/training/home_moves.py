"""Home moves at the step boundary: experts change ranks with parameters and optimizer state.

    check on all ranks together -> receive into staging -> commit point -> copy in place

Nothing of a rank's experts is written before every rank has received all that the batch brings it.
A failure before the first commit point leaves all ranks as they were. From then on nobody can know
what a lost rank has written: the model is torn.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import BarrierOptions
from torch.optim import Optimizer

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import ConflictError, ExhaustedError, ForemoeError, TransferError
from foremoe.training.expert_state import ExpertState, Signature
from foremoe.training.home_experts import HomeExperts
from foremoe.transfer.moves import Move, Round, plan_moves, staged_batches
from foremoe.transfer.slab import TENSOR_ALIGNMENT, align

log = logging.getLogger(__name__)

STAGING_BYTES = 1 << 30
_UNCHANGED = "no expert has changed: attach again, or save the model as it is"
_TORN = (
    "the model is torn, experts may be lost or doubled: restore the last checkpoint on all ranks"
)


def move_experts(
    homes: Sequence[HomeExperts],
    optimizers: Sequence[Optimizer],
    old: NDArray[np.int32],
    new: NDArray[np.int32],
    group: dist.ProcessGroup,
    staging_bytes: int = STAGING_BYTES,
    wait_seconds: float = 300.0,
) -> int:
    """Bring this rank's experts from the homes ``old [L, E]`` to ``new [L, E]``, in place.

    Collective over ``group`` (gloo), which nothing else uses meanwhile. homes: this rank's experts
    by layer row; afterwards their rows are its new experts, ascending, which the caller tells them
    by ``hold``. optimizers: all that hold state of them. staging_bytes: most memory taken
    meanwhile; what does not fit goes in further batches, which a failure can tear apart.
    wait_seconds: how long another rank may take for one expert. Returns how many experts moved, in
    the whole group.

    Raises on all ranks alike, with nothing changed: InvalidInputError for homes or optimizer state
    that cannot be moved, ConflictError when ranks differ in homes, shapes, dtypes or optimizer
    state, ExhaustedError when staging does not suffice. Raises TransferError, which says whether
    the model is torn, when a rank is late or lost.
    """
    started = time.monotonic()
    problem: ForemoeError | None = None
    mover: _Mover | None = None
    try:
        states = [ExpertState.of(home.layer, home.parameters, optimizers) for home in homes]
        mover = _Mover(states, old, new, group, staging_bytes, timedelta(seconds=wait_seconds))
    except ForemoeError as error:
        problem = error
    _check_offers(problem, None if mover is None else mover.offer, group)
    assert mover is not None, "a rank with a problem makes all ranks raise"
    mover.run()
    moved = int(np.count_nonzero(old != new))
    log.info(
        "homes moved: %d experts, %d bytes to this rank, %d batches, %.3f s",
        moved,
        mover.received_bytes,
        len(mover.batches),
        time.monotonic() - started,
    )
    return moved


@dataclass(frozen=True, slots=True)
class _Offer:
    """What one rank would do: homes and limit, and by layer that moves its experts' tensors."""

    goal: tuple[bytes, bytes, int]
    tensors: dict[int, Signature]
    common: dict[int, dict[str, object]]


def _check_offers(
    problem: ForemoeError | None, offer: _Offer | None, group: dist.ProcessGroup
) -> None:
    """Raise on all ranks alike when one has a problem, or they would not do the same."""
    gathered: list[tuple[ForemoeError | None, _Offer]] = [(None, _Offer((b"", b"", 0), {}, {}))]
    gathered *= group.size()
    try:
        dist.all_gather_object(gathered, (problem, offer), group=group)
    except RuntimeError as error:
        raise _lost(group, _UNCHANGED, error) from error
    for rank, (found, _) in enumerate(gathered):
        if found is not None:
            raise type(found)(f"home moves refused on rank {rank}: {found}")
    _, first = gathered[0]
    for rank, (_, other) in enumerate(gathered):
        if other.goal != first.goal:
            raise ConflictError(
                f"home moves refused: ranks 0 and {rank} were given different homes or limits"
            )
        for layer, tensors in first.tensors.items():
            if differing := set(tensors) ^ set(other.tensors[layer]):
                raise ConflictError(
                    f"home moves refused: ranks 0 and {rank} differ in layer {layer} by "
                    f"{sorted(differing)}; give their experts the same shapes and dtypes, and "
                    "let all ranks take an optimizer step or none"
                )
            if other.common[layer] != first.common[layer]:
                raise ConflictError(
                    f"home moves refused: layer {layer} has {first.common[layer]} on rank 0 but "
                    f"{other.common[layer]} on rank {rank}; step their optimizers alike"
                )


class _Mover:
    """One rank's part. Nothing but memory is taken before ``run``."""

    def __init__(
        self,
        states: Sequence[ExpertState],
        old: NDArray[np.int32],
        new: NDArray[np.int32],
        group: dist.ProcessGroup,
        staging_bytes: int,
        wait: timedelta,
    ) -> None:
        self.rank = group.rank()
        rounds = plan_moves(old, new, group.size())
        weights = [_expert_bytes(state) for state in states]
        self.batches = staged_batches(rounds, weights, group.size(), staging_bytes)
        arriving = [
            sum(weights[move.row] for move in _flat(batch) if move.destination == self.rank)
            for batch in self.batches
        ]
        self.received_bytes = sum(arriving)
        moving = [states[row] for row in sorted({moves[0].row for moves in rounds})]
        self.offer = _Offer(
            (old.tobytes(), new.tobytes(), staging_bytes),
            {state.layer: state.signature() for state in moving},
            {state.layer: state.common for state in moving},
        )
        self._states = states
        self._owned = [np.flatnonzero(row == self.rank).tolist() for row in old]
        self._group = group
        self._wait = wait
        self._tag = 0
        self._staging = _allocate(max(arriving, default=0))

    def run(self) -> None:
        """All batches. Raises TransferError when a rank is late or lost."""
        for number, batch in enumerate(self.batches):
            try:
                staged = self._receive(batch)
                crash_point(CrashPoint.HOMES_STAGED)
                self._barrier()
            except RuntimeError as error:
                raise _lost(self._group, _TORN if number else _UNCHANGED, error) from error
            try:
                self._barrier()
            except RuntimeError as error:
                raise _lost(self._group, _TORN, error) from error
            crash_point(CrashPoint.HOMES_COMMITTED)
            self._commit(staged, [m for m in _flat(batch) if m.source == self.rank])
            crash_point(CrashPoint.HOMES_MOVED)

    def _receive(self, batch: Sequence[Round]) -> dict[Move, list[Tensor]]:
        """Send what the batch takes from this rank; what it brings, in staging."""
        staged: dict[Move, list[Tensor]] = {}
        free = self._staging
        for moves in batch:
            state = self._states[moves[0].row]
            works: list[dist.Work] = []
            for move in moves:
                if move.source == self.rank:
                    row = self._owned[move.row].index(move.expert)
                    works += [
                        self._group.send([_bytes(tensor).cpu()], move.destination, self._tag + i)
                        for i, tensor in enumerate(state.tensors(row))
                    ]
                elif move.destination == self.rank:
                    staged[move], free = _carve(free, state.tensors(0))
                    works += [
                        self._group.recv([_bytes(tensor)], move.source, self._tag + i)
                        for i, tensor in enumerate(staged[move])
                    ]
            for work in works:
                work.wait(self._wait)
            self._tag += len(state.rows)
        return staged

    def _barrier(self) -> None:
        """Return when every rank has entered. The second one of a batch is its commit point.

        Who fails in the first has not entered the second, so that nobody passes it.
        """
        options = BarrierOptions()
        options.timeout = self._wait
        self._group.barrier(options).wait()

    def _commit(self, staged: dict[Move, list[Tensor]], given: Sequence[Move]) -> None:
        """Write what has arrived; what stays closes ranks, so that rows ascend by expert again."""
        for row in sorted({move.row for move in given}):
            taken = {move.expert: tensors for move, tensors in staged.items() if move.row == row}
            gone = {move.expert for move in given if move.row == row}
            before = self._owned[row]
            after = sorted((set(before) | set(taken)) - gone)
            state = self._states[row]
            for source, target in _shifts(before, after):
                _copy(state.tensors(source), state.tensors(target))
            for expert, tensors in taken.items():
                _copy(tensors, state.tensors(after.index(expert)))
            self._owned[row] = after


def _lost(group: dist.ProcessGroup, consequence: str, error: RuntimeError) -> TransferError:
    return TransferError(
        f"home moves: rank {group.rank()} lost another rank ({error}); {consequence}"
    )


def _shifts(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, int]]:
    """Row changes (from, to) of the experts that stay, in an order that overwrites none of them.

    Both lists ascend, so an expert's target is left by one that shifts further the same way.
    """
    shifts = [(i, after.index(expert)) for i, expert in enumerate(before) if expert in after]
    up = [(source, target) for source, target in shifts if target > source]
    return up[::-1] + [(source, target) for source, target in shifts if target < source]


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _allocate(nbytes: int) -> Tensor:
    try:
        return torch.empty(nbytes, dtype=torch.uint8)
    except RuntimeError as error:
        raise ExhaustedError(
            f"no memory for {nbytes} bytes of staging; lower staging_bytes"
        ) from error


def _carve(free: Tensor, like: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Tensors shaped as ``like`` at the beginning of ``free``, and what is left of it."""
    carved = []
    for tensor in like:
        carved.append(free[: tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        free = free[align(tensor.nbytes, TENSOR_ALIGNMENT) :]
    return carved, free


def _expert_bytes(state: ExpertState) -> int:
    """Bytes one expert takes in staging."""
    return sum(align(tensor.nbytes, TENSOR_ALIGNMENT) for tensor in state.tensors(0))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _flat(batch: Sequence[Round]) -> list[Move]:
    return [move for moves in batch for move in moves]
