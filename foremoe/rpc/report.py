"""What happened on one rank in one micro-step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.limits import NAME_CHARACTERS
from foremoe.rpc.arrays import decode_array, encode_array
from foremoe.rpc.v1 import rank_pb2

# Of one rank in one micro-step and layer; what is above is no measurement, and sums stay in bounds.
MOST_TOKENS = 2**40
MOST_SECONDS = 1e9
LATEST_UNIX_NS = 2**62


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
    began_unix_ns: when it began, 0 where nobody looked.
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
    began_unix_ns: int = 0


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
        began_unix_ns=report.began_unix_ns,
    )


def decode_reports(
    messages: Sequence[rank_pb2.MicroStepReport], layers: int
) -> list[MicroStepReport]:
    """Raises InvalidInputError, naming the field, when an array's shape or values are wrong."""
    reports = [
        _decode(message, f"micro_steps[{index}]", layers) for index, message in enumerate(messages)
    ]
    for name, most in (("computed_tokens", MOST_TOKENS), ("exposed_seconds", MOST_SECONDS)):
        _check_values(name, [getattr(report, name) for report in reports], most)
    for index, report in enumerate(reports):
        for name in ("seconds", "exposed_gradient_seconds"):
            if not 0 <= getattr(report, name) <= MOST_SECONDS:
                raise _beyond(index, name, MOST_SECONDS)
    return reports


def _check_values(name: str, arrays: Sequence[NDArray[Any]], most: float) -> None:
    """All at once: a report is small, and the ranks send theirs together."""
    if not arrays:
        return
    values = np.concatenate(arrays)
    if values.min() >= 0 and values.max() <= most:  # neither holds where one is no number
        return
    wrong = ~((values >= 0) & (values <= most))
    raise _beyond(int(wrong.argmax()) // len(arrays[0]), name, most)


def _beyond(index: int, name: str, most: float) -> InvalidInputError:
    return InvalidInputError(f"micro_steps[{index}].{name}: must lie in [0, {most:.0f}]")


def _decode(message: rank_pb2.MicroStepReport, field: str, layers: int) -> MicroStepReport:
    return MicroStepReport(
        micro_step=message.micro_step,
        degraded_reason=_printable(message.degraded_reason),
        computed_tokens=decode_array(
            message.computed_tokens, f"{field}.computed_tokens", [np.int64], (layers,)
        ),
        exposed_seconds=decode_array(
            message.exposed_seconds, f"{field}.exposed_seconds", [np.float64], (layers,)
        ),
        host_bytes=message.host_bytes,
        peer_bytes=message.peer_bytes,
        gradient_bytes=message.gradient_bytes,
        host_copies=message.host_copies,
        peer_copies=message.peer_copies,
        seconds=message.seconds,
        exposed_gradient_seconds=message.exposed_gradient_seconds,
        began_unix_ns=min(message.began_unix_ns, LATEST_UNIX_NS),
    )


def _printable(reason: str) -> str:
    """For logs: one line, and no more than a name has."""
    return "".join(c if c.isprintable() else " " for c in reason[:NAME_CHARACTERS])
