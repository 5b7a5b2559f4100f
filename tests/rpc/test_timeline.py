"""What ran when, as rows: back as it was, however long a stage takes."""

import numpy as np

from foremoe.rpc.timeline import Timeline, decode_timeline, encode_timeline
from foremoe.timeline.span import Span

MICROSECOND, MINUTE = 10**3, 60 * 10**9
FIRST = Span("compute", "forward", 5 * MINUTE, 5 * MINUTE + 7 * MICROSECOND, 0, 3)
EXPOSED = Span("exposed", "copies", 6 * MINUTE, 6 * MINUTE + MICROSECOND, 1, 3)


def sent(*spans: Span) -> list[Span]:
    """As a report draws them, of rank 2."""
    message = encode_timeline(Timeline.of(spans, ahead_ns=10**18))
    return list(decode_timeline(message, "timeline").spans(2))


def test_spans_come_back_in_unix_time_with_their_rank() -> None:
    first, exposed = sent(FIRST, EXPOSED)
    assert first == ("compute rank 2", "compute", 10**18 + FIRST[2], 10**18 + FIRST[3], *FIRST[4:])
    assert exposed.track == "exposed rank 2"
    assert (exposed.name, exposed.micro_step, exposed.layer) == ("copies", 1, 3)


def test_a_stage_that_was_held_up_for_an_hour_is_told_of_until_then() -> None:
    late = FIRST._replace(start_ns=65 * MINUTE, end_ns=65 * MINUTE + 1)
    held_up = FIRST._replace(end_ns=65 * MINUTE)
    assert len(sent(FIRST, held_up, late)) == 1


def test_streams_of_a_newer_rank_are_left_out() -> None:
    rows = np.array([[99, 0, 3, 0, 7], [4, 0, 3, 0, 7]], np.int32)
    kept = decode_timeline(encode_timeline(Timeline(0, rows)), "timeline")
    assert kept.rows.tolist() == [[4, 0, 3, 0, 7]]
