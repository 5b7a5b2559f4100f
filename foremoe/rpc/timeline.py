"""What ran when on one rank: spans as rows of whole numbers, and back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.limits import check_range
from foremoe.rpc.arrays import decode_array, encode_array
from foremoe.rpc.report import LATEST_UNIX_NS
from foremoe.rpc.v1 import timeline_pb2
from foremoe.timeline.span import Span

MAX_SPANS = 1024  # of a rank in a stage
TIMELINE_RANKS = 8  # that a daemon keeps, from rank 0 on
_MICROSECOND = 1000  # nanoseconds
# By their numbers in timeline.proto: track, and name where it matters.
STREAMS = {
    timeline_pb2.STREAM_OTHER: ("other", ""),
    timeline_pb2.STREAM_AGREEMENT: ("agreement", ""),
    timeline_pb2.STREAM_DISPATCH: ("dispatch", ""),
    timeline_pb2.STREAM_COMPUTE: ("compute", ""),
    timeline_pb2.STREAM_EXPOSED_PLANS: ("exposed", "plans"),
    timeline_pb2.STREAM_EXPOSED_COPIES: ("exposed", "copies"),
    timeline_pb2.STREAM_EXPOSED_GRADIENTS: ("exposed", "gradients"),
    timeline_pb2.STREAM_HOST: ("host", ""),
    timeline_pb2.STREAM_PEER: ("peer", ""),
    timeline_pb2.STREAM_GRADIENTS: ("gradients", ""),
}
_NUMBERS = {stream: number for number, stream in STREAMS.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """began_unix_ns: the moment from which rows count.

    rows: int32 ``[S, 5]``: stream, micro-step, layer (-1 for none), begin and length in
    microseconds.
    """

    began_unix_ns: int
    rows: NDArray[np.int32]

    @classmethod
    def of(cls, spans: Sequence[Span], ahead_ns: int) -> "Timeline":
        """ahead_ns: of Unix time before the clock of ``spans``, of which there is at least one.

        What ended later than rows can say, 35 minutes after the first one began, is left out.
        """
        first = min(span.start_ns for span in spans)
        rows = np.array([_row(span, first) for span in spans[:MAX_SPANS]])
        in_time = rows[:, 3] + rows[:, 4] <= np.iinfo(np.int32).max
        return cls(first + ahead_ns, rows[in_time].astype(np.int32))

    def spans(self, rank: int) -> Iterator[Span]:
        """With the rank in the track's name, as in simulated runs; in Unix time."""
        for stream, micro_step, layer, begin, length in self.rows.tolist():
            track, name = STREAMS[stream]
            start = self.began_unix_ns + begin * _MICROSECOND
            end = start + max(length, 1) * _MICROSECOND
            yield Span(f"{track} rank {rank}", name or track, start, end, micro_step, layer)


def _row(span: Span, first_ns: int) -> tuple[int, int, int, int, int]:
    stream = (span.track, span.name if span.track == "exposed" else "")
    begin = (span.start_ns - first_ns) // _MICROSECOND
    end = (span.end_ns - first_ns) // _MICROSECOND
    number = _NUMBERS.get(stream, timeline_pb2.STREAM_OTHER)
    return number, span.micro_step, span.layer, begin, end - begin


def encode_timeline(timeline: Timeline) -> timeline_pb2.Timeline:
    return timeline_pb2.Timeline(
        began_unix_ns=timeline.began_unix_ns, spans=encode_array(timeline.rows)
    )


def decode_timeline(message: timeline_pb2.Timeline, field: str) -> Timeline:
    """Streams that a newer peer knows are left out; InvalidInputError, naming ``field``."""
    check_range(message.began_unix_ns, 0, LATEST_UNIX_NS, f"{field}.began_unix_ns")
    rows = decode_array(message.spans, f"{field}.spans", [np.int32], (None, 5))
    if len(rows) > MAX_SPANS:
        raise InvalidInputError(f"{field}.spans: at most {MAX_SPANS}, got {len(rows)}")
    if len(rows) and ((rows[:, 1:] < (0, -1, 0, 0)).any()):
        raise InvalidInputError(f"{field}.spans: a micro-step, layer, begin or length is below 0")
    return Timeline(message.began_unix_ns, rows[np.isin(rows[:, 0], list(STREAMS))])
