"""What must be copied: from what every slot must hold and what the group's slots hold now."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.transfer.schedule.links import NEVER

EMPTY = -1


class Path(StrEnum):
    """The way a copy takes: from the node's host cache, or from the home rank."""

    HOST = "host"
    PEER = "peer"


@dataclass(frozen=True, slots=True, order=True)
class Fill:
    """Slot ``slot`` of rank ``rank`` must receive ``expert``."""

    rank: int
    slot: int
    expert: int


@dataclass(frozen=True, slots=True, order=True)
class Copy:
    """One slab to move: expert ``expert`` of ``layer`` into ``slot`` of rank ``destination``.

    source: the expert's home; on the host path its bytes come from the node's host cache instead.
    due_ns: when compute needs it, on the clock by which micro-steps are estimated.
    """

    layer: int
    expert: int
    source: int
    destination: int
    slot: int
    path: Path
    due_ns: int = NEVER


def check_wanted(wanted: NDArray[np.int32], home: NDArray[np.int32]) -> None:
    """Raise InvalidInputError unless ``wanted [P, R]`` is a placement of replicas for ``home [E]``.

    Experts must exist, differ within a rank, and live on another rank than their home.
    """
    if wanted.size and (int(wanted.min()) < EMPTY or int(wanted.max()) >= home.size):
        raise InvalidInputError(f"replicas: experts must lie in [0, {home.size}), -1 for none")
    ordered = np.sort(wanted, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != EMPTY)
    if twice.any():
        rank = int(np.argmax(twice.any(axis=1)))
        raise InvalidInputError(
            f"replicas: rank {rank} is to hold an expert twice: {wanted[rank].tolist()}"
        )
    at_home = (home[wanted] == np.arange(wanted.shape[0])[:, None]) & (wanted != EMPTY)
    if at_home.any():
        rank, slot = np.argwhere(at_home)[0].tolist()
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
    wanted: NDArray[np.int32], content: NDArray[np.int32]
) -> tuple[NDArray[np.int32], list[Fill]]:
    """Choose slots so that what is already there need not be copied again.

    wanted: int32 ``[P, R]``, the experts each rank must hold, -1 for none; the position is a wish.
    content: int32 ``[P, R]``, the experts in the slots now, -1 for none.

    An expert already in one of its rank's slots stays there. Another one takes the slot named in
    ``wanted`` if that holds nothing wanted, else the first empty one, else the first whose expert
    is not wanted. Returns the content afterwards (unwanted experts stay until overwritten) and the
    fills, ascending.

    >>> assign_slots(np.array([[4, 7]], np.int32), np.array([[7, 2]], np.int32))
    (array([[7, 4]], dtype=int32), [Fill(rank=0, slot=1, expert=4)])
    """
    after = content.copy()
    fills: list[Fill] = []
    absent = (wanted != EMPTY) & ~held(wanted, content)
    for rank in np.flatnonzero(absent.any(axis=1)).tolist():
        missing = [(slot, int(wanted[rank, slot])) for slot in _slots(absent[rank])]
        open_slots = _open_slots(wanted[rank], content[rank])
        named = [(slot, expert) for slot, expert in missing if slot in open_slots]
        unnamed = [(slot, expert) for slot, expert in missing if slot not in open_slots]
        for slot, _ in named:
            open_slots.remove(slot)
        moved = [(open_slots.pop(0), expert) for _, expert in unnamed]
        for slot, expert in named + moved:
            after[rank, slot] = expert
            fills.append(Fill(rank, slot, expert))
    return after, sorted(fills)


def _slots(chosen: NDArray[np.bool_]) -> list[int]:
    return [slot for slot, is_chosen in enumerate(chosen.tolist()) if is_chosen]


def _open_slots(wanted: NDArray[np.int32], content: NDArray[np.int32]) -> list[int]:
    """Slots that may be overwritten, empty ones first."""
    kept = set(wanted.tolist()) - {EMPTY}
    empty = [s for s, e in enumerate(content.tolist()) if e == EMPTY]
    stale = [s for s, e in enumerate(content.tolist()) if e != EMPTY and e not in kept]
    return empty + stale
