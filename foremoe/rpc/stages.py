"""The stage of a message as the shared vocabulary names it, and back."""

from foremoe.errors import InvalidInputError
from foremoe.rpc.v1 import stage_pb2
from foremoe.vocabulary import Stage

_TO_WIRE = {
    Stage.RECOMPUTE: stage_pb2.STAGE_RECOMPUTE,
    Stage.UPDATE: stage_pb2.STAGE_UPDATE,
}
_FROM_WIRE = {int(value): stage for stage, value in _TO_WIRE.items()}


def encode_stage(stage: Stage) -> stage_pb2.Stage:
    """Raises InvalidInputError for what is no stage, as callers without types may pass."""
    if stage not in _TO_WIRE:
        raise InvalidInputError(f"stage: {stage!r} is none; give one of {', '.join(_TO_WIRE)}")
    return _TO_WIRE[stage]


def decode_stage(value: int, field: str) -> Stage:
    """Raises InvalidInputError, naming ``field``, for a value that is no stage."""
    stage = _FROM_WIRE.get(int(value))
    if stage is None:
        names = ", ".join(f"{int(value)} ({stage})" for stage, value in _TO_WIRE.items())
        raise InvalidInputError(f"{field}: {int(value)} is no stage; give one of {names}")
    return stage
