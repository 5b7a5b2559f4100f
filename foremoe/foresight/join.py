"""One sequence from its pieces: the turns of a conversation, or a rollout that was resumed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.routing import Fault, FaultKind, Routing, Row

MOST_GAP_ROWS = 2**20  # as long as contexts get; gaps take memory as recorded rows do
_UNSEEN = 255  # no Row


def join(pieces: Sequence[Routing]) -> Routing:
    """The whole sequence, rows from token 0 to the last piece's end.

    pieces: in the order they were rolled out; each begins at its ``start``. A later piece replaces
    what earlier ones say from its start on: its rollout saw those tokens last (slime and miles
    splice turns alike). Tokens that no piece covers are MISSING and a fault. The policies that
    chose are listed over all pieces.

    Raises InvalidInputError when the pieces are of different sequences or models, there is none, or
    one begins more than MOST_GAP_ROWS behind all rows before it.
    """
    if not pieces:
        raise InvalidInputError("pieces: there is none to join")
    first = pieces[0]
    if len(pieces) == 1 and first.start == 0:
        return first
    _check_alike(pieces)
    _check_gaps(pieces)
    longest = max(piece.start + len(piece.ids) for piece in pieces)
    dtype = np.result_type(*(piece.ids for piece in pieces))
    ids = np.zeros((longest, *first.ids.shape[1:]), dtype)
    rows = np.full(longest, _UNSEEN, np.uint8)
    for piece in pieces:
        end = piece.start + len(piece.ids)
        rows[piece.start :] = _UNSEEN
        ids[piece.start : end], rows[piece.start : end] = piece.ids, piece.rows
    ids, rows = ids[:end], rows[:end]
    gap = int(np.count_nonzero(rows == _UNSEEN))
    rows[rows == _UNSEEN] = Row.MISSING
    versions = dict.fromkeys(version for piece in pieces for version in piece.weight_versions)
    model = MoeModel(first.num_experts, first.top_k, first.layers[-1] + 1, first.layers)
    whole = inspect(first.sequence, ids, model, rows=rows, weight_versions=tuple(versions))
    faults = [*whole.faults, *_row_faults(pieces)]
    if gap:
        faults.append(Fault(FaultKind.GAP, first.sequence, gap))
    return replace(whole, faults=tuple(faults))


def _check_alike(pieces: Sequence[Routing]) -> None:
    first = pieces[0]
    for piece in pieces:
        if piece.sequence != first.sequence or not piece.of_the_same_model(first):
            raise InvalidInputError(
                f"sequence {first.sequence!r}: a piece of sequence {piece.sequence!r} with "
                f"{len(piece.layers)} layers and top_k {piece.top_k} cannot be joined to it"
            )


def _check_gaps(pieces: Sequence[Routing]) -> None:
    end = 0
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if piece.start - end > MOST_GAP_ROWS:
            raise InvalidInputError(
                f"sequence {piece.sequence!r}: a piece starts at token {piece.start}, but what is "
                f"before it ends at {end}; a gap has at most {MOST_GAP_ROWS} rows, check its start"
            )
        end = max(end, piece.start + len(piece.ids))


def _row_faults(pieces: Sequence[Routing]) -> list[Fault]:
    """What the pieces said of their rows; a layer lost in one piece only is lost rows of all."""
    return [
        replace(fault, kind=FaultKind.ROWS_NOT_CAPTURED)
        if fault.kind is FaultKind.NOTHING_CAPTURED
        else fault
        for piece in pieces
        for fault in piece.faults
        if fault.layer is None
    ]
