"""What must be copied: from what every slot must hold and what the group's slots hold now."""

from collections.abc import Sequence
from enum import StrEnum
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.kernel import kernel, part
from foremoe.transfer.content import Content
from foremoe.transfer.schedule.links import NEVER

EMPTY = -1
_NO_FAULT, _UNKNOWN, _TWICE, _AT_HOME = range(4)


class Path(StrEnum):
    """The way a copy takes: from the node's host cache, or from the home rank."""

    HOST = "host"
    PEER = "peer"


class Fill(NamedTuple):
    """Slot ``slot`` of rank ``rank`` must receive ``expert``."""

    rank: int
    slot: int
    expert: int


class Relay(NamedTuple):
    """Where a copy that does not come from its home comes from: the slot of the rank that sends."""

    slot: int
    home: int


class Copy(NamedTuple):
    """One slab to move: expert ``expert`` of ``layer`` into ``slot`` of rank ``destination``.

    source: the rank that sends, the expert's home or by ``relay`` another one; on the host path the
    bytes come from the home's node's host cache instead. due_ns: when compute needs it, on the
    clock by which micro-steps are estimated.
    """

    layer: int
    expert: int
    source: int
    destination: int
    slot: int
    path: Path
    due_ns: int = NEVER
    relay: Relay | None = None

    @property
    def home(self) -> int:
        """The expert's home."""
        return self.source if self.relay is None else self.relay.home

    def content(self, generation: int) -> Content:
        """What the slot holds once it is filled."""
        return Content(self.layer, self.expert, generation)


def fill_columns(fills: Sequence[Fill]) -> NDArray[np.int64]:
    """Ranks, slots and experts of ``fills``: int64 ``[3, n]``."""
    numbers = np.fromiter(chain.from_iterable(fills), np.int64, 3 * len(fills))
    return numbers.reshape(-1, 3).T.copy()


def check_wanted(wanted: NDArray[np.int32], home: NDArray[np.int32]) -> None:
    """Raise InvalidInputError unless ``wanted [P, R]`` is a placement of replicas for ``home [E]``.

    Experts must exist, differ within a rank, and live on another rank than their home.
    """
    fault, rank, slot = _first_fault(np.array(wanted, order="C"), np.array(home))
    if fault == _UNKNOWN:
        raise InvalidInputError(f"replicas: experts must lie in [0, {home.size}), -1 for none")
    if fault == _TWICE:
        raise InvalidInputError(
            f"replicas: rank {rank} is to hold an expert twice: {wanted[rank].tolist()}"
        )
    if fault == _AT_HOME:
        raise InvalidInputError(
            f"replicas: rank {rank} is the home of expert {wanted[rank, slot]}; "
            "a replica belongs on another rank"
        )


def held(experts: NDArray[np.int32], content: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which of ``experts [P, R]`` are among their rank's ``content [P, R]``: bool ``[P, R]``."""
    found: NDArray[np.bool_] = (experts[:, :, None] == content[:, None, :]).any(axis=2)
    found &= experts != EMPTY
    return found


def assign_slots(
    wanted: NDArray[np.int32], content: NDArray[np.int32], first_slot: int = 0
) -> tuple[NDArray[np.int32], list[Fill]]:
    """Choose slots so that what is already there need not be copied again.

    wanted: int32 ``[P, R]``, the experts each rank must hold, -1 for none; the position is a wish.
    content: int32 ``[P, R]``, the experts in the slots now, -1 for none. first_slot: the number of
    their first slot.

    An expert already in one of its rank's slots stays there. Another one takes the slot named in
    ``wanted`` if that holds nothing wanted, else the first empty one, else the first whose expert
    is not wanted. Returns the content afterwards (unwanted experts stay until overwritten) and the
    fills, ascending.

    >>> assign_slots(np.array([[4, 7]], np.int32), np.array([[7, 2]], np.int32))
    (array([[7, 4]], dtype=int32), [Fill(rank=0, slot=1, expert=4)])
    """
    assert wanted.shape == content.shape, "wanted and content are [P, R]"
    after = _content_after(np.array(wanted, order="C"), np.array(content, order="C"))
    ranks, slots = np.nonzero(after != content)
    numbers = (slots + first_slot).tolist()
    return after, list(map(Fill, ranks.tolist(), numbers, after[ranks, slots].tolist()))


@kernel
def _first_fault(wanted: NDArray[np.int32], home: NDArray[np.int32]) -> tuple[int, int, int]:
    """What is wrong with ``wanted``, if anything, and on which rank and in which slot."""
    for rank in range(wanted.shape[0]):
        for slot in range(wanted.shape[1]):
            expert = wanted[rank, slot]
            if expert < EMPTY or expert >= home.size:
                return _UNKNOWN, rank, slot
            if expert != EMPTY and _is_in(expert, wanted[rank, :slot]):
                return _TWICE, rank, slot
            if expert != EMPTY and home[expert] == rank:
                return _AT_HOME, rank, slot
    return _NO_FAULT, 0, 0


@kernel
def _content_after(wanted: NDArray[np.int32], content: NDArray[np.int32]) -> NDArray[np.int32]:
    after = content.copy()
    for rank in range(wanted.shape[0]):
        row, slots = wanted[rank], after[rank]
        for slot in range(row.size):
            missing = row[slot] != EMPTY and not _is_in(row[slot], slots)
            if missing and (slots[slot] == EMPTY or not _is_in(slots[slot], row)):
                slots[slot] = row[slot]
        for slot in range(row.size):
            if row[slot] != EMPTY and not _is_in(row[slot], slots):
                slots[_first_open(slots, row)] = row[slot]
    return after


@part
def _is_in(expert: int, row: NDArray[np.int32]) -> bool:
    found: bool = (row == expert).any()
    return found


@part
def _first_open(slots: NDArray[np.int32], wanted: NDArray[np.int32]) -> int:
    """The first empty slot, else the first whose expert is not wanted."""
    stale = -1
    for slot in range(slots.size):
        if slots[slot] == EMPTY:
            return slot
        if stale < 0 and not _is_in(slots[slot], wanted):
            stale = slot
    return stale
