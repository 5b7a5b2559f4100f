"""What happened on one rank in one micro-step."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.rpc.arrays import decode_array, encode_array
from foremoe.rpc.limits import NAME_CHARACTERS
from foremoe.rpc.v1 import rank_pb2


@dataclass(frozen=True, slots=True, eq=False)
class MicroStepReport:
    """One rank's account of one micro-step.

    degraded_reason: empty when the plan was used; else why it was not.
    computed_tokens: int64 ``[L]``, (token, expert) pairs this rank computed.
    exposed_seconds: float64 ``[L]``, how long compute waited for copies.
    host_bytes, peer_bytes: weight bytes received by each path.
    gradient_bytes: gradient bytes received for this rank's own experts.
    host_copies, peer_copies: experts received by each path.
    seconds: wall time of the micro-step; exposed_gradient_seconds: of it, waiting for gradients.
    """

    micro_step: int
    degraded_reason: str
    computed_tokens: NDArray[np.int64]
    exposed_seconds: NDArray[np.float64]
    host_bytes: int = 0
    peer_bytes: int = 0
    gradient_bytes: int = 0
    host_copies: int = 0
    peer_copies: int = 0
    seconds: float = 0.0
    exposed_gradient_seconds: float = 0.0


def encode_report(report: MicroStepReport) -> rank_pb2.MicroStepReport:
    return rank_pb2.MicroStepReport(
        micro_step=report.micro_step,
        degraded_reason=report.degraded_reason[:NAME_CHARACTERS],
        computed_tokens=encode_array(report.computed_tokens.astype(np.int64, copy=False)),
        exposed_seconds=encode_array(report.exposed_seconds.astype(np.float64, copy=False)),
        host_bytes=report.host_bytes,
        peer_bytes=report.peer_bytes,
        gradient_bytes=report.gradient_bytes,
        host_copies=report.host_copies,
        peer_copies=report.peer_copies,
        seconds=report.seconds,
        exposed_gradient_seconds=report.exposed_gradient_seconds,
    )


def decode_report(message: rank_pb2.MicroStepReport, field: str, layers: int) -> MicroStepReport:
    """Raises InvalidInputError, naming ``field``, when an array's shape or values are wrong."""
    computed = decode_array(
        message.computed_tokens, f"{field}.computed_tokens", [np.int64], (layers,)
    )
    exposed = decode_array(
        message.exposed_seconds, f"{field}.exposed_seconds", [np.float64], (layers,)
    )
    if int(computed.min()) < 0:
        raise InvalidInputError(f"{field}.computed_tokens: must not be negative")
    if not bool(np.all(np.isfinite(exposed) & (exposed >= 0))):
        raise InvalidInputError(f"{field}.exposed_seconds: must be finite and not negative")
    for name in ("seconds", "exposed_gradient_seconds"):
        if not 0 <= getattr(message, name) < float("inf"):
            raise InvalidInputError(f"{field}.{name}: must be finite and not negative")
    return MicroStepReport(
        micro_step=message.micro_step,
        degraded_reason=message.degraded_reason,
        computed_tokens=computed,
        exposed_seconds=exposed,
        host_bytes=message.host_bytes,
        peer_bytes=message.peer_bytes,
        gradient_bytes=message.gradient_bytes,
        host_copies=message.host_copies,
        peer_copies=message.peer_copies,
        seconds=message.seconds,
        exposed_gradient_seconds=message.exposed_gradient_seconds,
    )
