"""The recorder: what the compute stream did has no gaps, memory is bounded, off means nothing."""

import json
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from foremoe.timeline.chrome_trace import recorded_traces
from foremoe.timeline.recorder import AGREEMENT, Activity, SpanRecorder
from foremoe.timeline.span import StageOfRun

FORWARD = Activity("compute", "forward", 3)
DISPATCH = Activity("dispatch", "backward", 3)
OF = StageOfRun("ep0", 7, "update", True)


def recorded(path: Path | None = None) -> SpanRecorder:
    """One micro-step with a wait inside of a layer's compute."""
    spans = SpanRecorder(100, path, "ep0", "rank 1")
    with spans.micro_step(7, "update", True, 2):
        with spans.during(AGREEMENT):
            pass
        with spans.during(FORWARD):
            began = time.monotonic()
            while time.monotonic() - began < 2e-3:
                pass
            spans.waited("copies", 1e-3, layer=3)
        with spans.during(DISPATCH, then=FORWARD):
            pass
    return spans


def test_the_compute_stream_has_no_gaps_and_what_was_waited_is_exposed() -> None:
    spans = list(recorded().spans)
    assert [span.track for span in spans] == [
        *("other", "agreement", "other", "compute", "exposed", "compute", "other"),
        *("dispatch", "compute"),
    ]
    for before, after in pairwise(spans):
        assert before.end_ns == after.start_ns
    assert {(span.micro_step, span.of) for span in spans} == {(2, OF)}
    exposed = spans[4]
    assert exposed.end_ns - exposed.start_ns == 1_000_000
    assert (exposed.name, exposed.layer) == ("copies", 3)
    assert spans[3].end_ns - spans[3].start_ns >= 900_000


def test_a_wait_is_never_longer_than_what_it_interrupts() -> None:
    spans = SpanRecorder(10)
    with spans.micro_step(0, "update", True, 0):
        spans.waited("plans", 3600.0)
    (exposed, rest) = spans.spans
    assert exposed.track == "exposed"
    assert exposed.end_ns - exposed.start_ns < 1e9
    assert rest.start_ns == exposed.end_ns


def test_only_the_newest_spans_are_kept() -> None:
    spans = SpanRecorder(5)
    for expert in range(20):
        spans.add("host", f"expert {expert}", time.monotonic_ns())
    assert [span.name for span in spans.spans] == [f"expert {expert}" for expert in range(15, 20)]


def test_threads_add_without_losing_any() -> None:
    spans = SpanRecorder(10_000)
    threads = [
        threading.Thread(
            target=lambda: [spans.add("host", "copy", time.monotonic_ns()) for _ in range(500)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spans.spans) == 2000


def test_off_and_outside_of_micro_steps_nothing_is_recorded(tmp_path: Path) -> None:
    off = SpanRecorder()
    with off.micro_step(0, "update", True, 0), off.during(FORWARD):
        off.waited("copies", 1.0)
        off.add("host", "expert 1", 0)
    off.save()
    assert not off.spans
    on = SpanRecorder(10, tmp_path / "none.json", "ep0", "rank 0")
    with on.during(FORWARD):
        on.waited("copies", 1.0)
    assert not on.spans


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "made" / "ep0-rank-1.json"
    spans = recorded(path)
    spans.add("host", "expert 4", time.monotonic_ns() - 5000, layer=3, nbytes=4096)
    spans.save()
    (trace,) = recorded_traces([path]).values()
    assert trace.processes == {"rank 1": sorted(spans.spans, key=lambda span: span.start_ns)}
    events = json.loads(path.read_text())["traceEvents"]
    tracks = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert tracks == ["compute", "host"]


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    recorded(tmp_path / "file" / "rank.json").save()
    assert "no timeline of rank 1" in caplog.text


def test_of_each_stage_the_first_whole_micro_steps_are_sampled() -> None:
    spans = SpanRecorder(ep_group="ep0", sampled=8)

    def run(step: int, balanced: bool, index: int) -> None:
        with spans.micro_step(step, "update", balanced, index), spans.during(FORWARD):
            spans.add("host", "expert 1", time.monotonic_ns() - 1000)

    for index in range(5):
        run(3, True, index)
    assert not spans.on  # once there is no room for more
    sample = spans.take_sample(3, "update")
    assert len(sample) < 8
    for index in range(1 + max(span.micro_step for span in sample)):
        whole = [span.track for span in sample if span.micro_step == index]
        assert {"host", "compute"} <= set(whole)
        assert whole[-1] == "other"
    assert not spans.spans  # those are for the file
    run(4, False, 0)
    assert spans.take_sample(4, "update") == []
    run(5, True, 0)  # a stage that broke off
    run(6, True, 0)
    assert {span.of for span in spans.take_sample(6, "update")} == {StageOfRun("ep0", 6, "update")}


def test_a_micro_step_that_is_too_long_alone_is_cut() -> None:
    spans = SpanRecorder(sampled=3)
    with spans.micro_step(0, "update", True, 0):
        for _ in range(9):
            spans.add("host", "expert 1", time.monotonic_ns())
        assert not spans.on  # the rest of the micro-step costs nothing
        with spans.during(FORWARD):
            spans.waited("copies", 1.0)
    assert len(spans.take_sample(0, "update")) == 3
