"""From the routings of a recording to a trace, and what had to be left out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from foremoe.errors import InvalidInputError
from foremoe.foresight.join import join
from foremoe.foresight.routing import Fault, FaultKind, Routing, Row
from foremoe.foresight.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """A trace and its recording's account.

    left_out: sequences that are not in the trace, for want of a row that counts in all its layers.
    lost_layers: layers that are not in the trace, as no sequence has them. padding, missing: rows
    of the recording that do not count. mixed_versions: sequences that several policies chose for.
    """

    trace: Trace
    left_out: tuple[str, ...]
    lost_layers: tuple[int, ...]
    padding: int
    missing: int
    mixed_versions: int
    faults: tuple[Fault, ...]


def convert(routings: Iterable[Routing]) -> Conversion:
    """Join the pieces of each sequence and put all sequences, in order, into one trace.

    A layer that no sequence captured is left out (a dense layer, or a fault of the whole capture);
    a sequence that lacks another layer is left out whole. Raises InvalidInputError when the
    sequences are of different models or nothing is left.
    """
    sequences = _joined(routings)
    captured = [r for r in sequences if r.present]
    if not captured:
        raise InvalidInputError(
            f"the recording has {len(sequences)} sequences, and none of them a captured row"
        )
    lost = set(captured[0].lost_layers).intersection(*(r.lost_layers for r in captured))
    layers = tuple(layer for layer in captured[0].layers if layer not in lost)
    kept = [r for r in captured if lost.issuperset(r.lost_layers)]
    if not kept or not layers:
        raise InvalidInputError(f"no sequence captured all layers; the first: {_first(captured)}")
    rows = np.concatenate([r.rows for r in sequences])
    names = {r.sequence for r in kept}
    return Conversion(
        trace=_trace(kept, layers),
        left_out=tuple(r.sequence for r in sequences if r.sequence not in names),
        lost_layers=tuple(sorted(lost)),
        padding=int(np.count_nonzero(rows == Row.PADDING)),
        missing=int(np.count_nonzero(rows == Row.MISSING)),
        mixed_versions=sum(len(r.weight_versions) > 1 for r in sequences),
        faults=tuple(fault for r in sequences for fault in r.faults),
    )


def _joined(routings: Iterable[Routing]) -> list[Routing]:
    pieces: dict[str, list[Routing]] = {}
    for routing in routings:
        pieces.setdefault(routing.sequence, []).append(routing)
    if not pieces:
        raise InvalidInputError("the recording holds no routed experts; was their return enabled?")
    sequences = [join(parts) for parts in pieces.values()]
    first = sequences[0]
    for routing in sequences:
        if not routing.of_the_same_model(first):
            raise InvalidInputError(
                f"sequence {routing.sequence!r} has {len(routing.layers)} layers and top_k "
                f"{routing.top_k}, sequence {first.sequence!r} has {len(first.layers)} and "
                f"{first.top_k}; convert each model's recording apart"
            )
    return sequences


def _trace(kept: Sequence[Routing], layers: tuple[int, ...]) -> Trace:
    num_experts = kept[0].num_experts
    dtype = np.uint8 if num_experts <= 2**8 else np.uint16 if num_experts <= 2**16 else np.int32
    parts = [r.select(layers).present_ids().astype(dtype) for r in kept]
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return Trace(np.concatenate(parts), offsets, num_experts, layers)


def _first(routings: Sequence[Routing]) -> Fault:
    return next(
        fault
        for routing in routings
        for fault in routing.faults
        if fault.kind is FaultKind.LAYER_NOT_CAPTURED
    )
