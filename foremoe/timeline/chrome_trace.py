"""Spans as a Chrome trace (JSON), which Perfetto and chrome://tracing open: one track per stream.

Format: "Trace Event Format", complete events (``"ph": "X"``), microseconds. Each process of a
recorded run writes a file of its own, with the clock of its machine; ``merged`` makes one of them.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foremoe.errors import InvalidInputError
from foremoe.timeline.span import COMPUTE, Span, StageOfRun

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_OF = StageOfRun._fields
_LARGEST = 2**62  # sums of two still fit an int64


@dataclass(frozen=True, slots=True)
class Clock:
    """machine: processes with the same one share ``time.monotonic_ns``, in which spans are.

    ahead_ns: by how much the machine's wall clock is ahead of it.
    """

    machine: str
    ahead_ns: int

    @classmethod
    def here(cls) -> "Clock":
        machine = _BOOT.read_text().strip() if _BOOT.exists() else ""
        return cls(machine, time.time_ns() - time.monotonic_ns())


@dataclass(frozen=True, slots=True)
class Trace:
    """Spans by process. clock: None where times begin at 0, as in simulated and merged ones."""

    processes: Mapping[str, Sequence[Span]]
    clock: Clock | None = None


def write_trace(path: Path, trace: Trace) -> None:
    """InvalidInputError if ``path`` is not writable.

    Spans of a stream that overlap, such as those of two planning workers, get tracks of their own.
    """
    events: list[dict[str, Any]] = []
    for process, (name, spans) in enumerate(trace.processes.items()):
        events.append(_named("process_name", name, process, 0))
        tracks: dict[str, int] = {}
        for track, span in _apart(spans):
            if track not in tracks:
                tracks[track] = len(tracks)
                events.append(_named("thread_name", track, process, tracks[track]))
            events.append(_event(span, process, tracks[track]))
    content: dict[str, Any] = {"traceEvents": events, "displayTimeUnit": "ms"}
    if trace.clock is not None:
        content["otherData"] = {"machine": trace.clock.machine, "ahead_ns": trace.clock.ahead_ns}
    try:
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error


def recorded_traces(files: Iterable[Path]) -> dict[Path, Trace]:
    """Those of the files that a process of a run has written; InvalidInputError."""
    found = {}
    for path in files:
        try:
            content = json.loads(path.read_bytes()) if path.suffix == ".json" else None
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path}: cannot be read as JSON ({error})") from error
        if isinstance(content, dict) and "traceEvents" in content and "otherData" in content:
            found[path] = read_trace(path, content)
    return found


def read_trace(path: Path, content: Any) -> Trace:
    """From a file's JSON; InvalidInputError. Events without a micro-step are another tool's."""
    try:
        events = content["traceEvents"]
        names = {
            event["pid"]: str(event["args"]["name"])
            for event in events
            if event["ph"] == "M" and event["name"] == "process_name"
        }
        processes: dict[str, list[Span]] = {}
        for event in events:
            if event["ph"] == "X" and "micro_step" in event.get("args", {}):
                process = names.get(event["pid"], f"process {event['pid']}")
                processes.setdefault(process, []).append(_span(event))
        told = content.get("otherData", {})
        clock = Clock(str(told["machine"]), int(told["ahead_ns"])) if "machine" in told else None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InvalidInputError(
            f"{path}: is no Chrome trace of foremoe, an event has no good {error}"
        ) from error
    if not processes:
        raise InvalidInputError(f"{path}: holds no span of a micro-step")
    return Trace(processes, clock)


def merged(traces: Iterable[Trace]) -> Trace:
    """What the processes of one run recorded, on one clock, from 0 on.

    Processes of one machine keep their common clock to the nanosecond; machines are as far apart as
    their wall clocks say.
    """
    ahead: dict[str, int] = {}
    processes: dict[str, list[Span]] = {}
    for trace in traces:
        clock = trace.clock or Clock("", 0)
        shift = ahead.setdefault(clock.machine, clock.ahead_ns)
        for name, spans in trace.processes.items():
            processes.setdefault(name, []).extend(moved(span, shift) for span in spans)
    first = min((span.start_ns for spans in processes.values() for span in spans), default=0)
    return Trace(
        {name: [moved(span, -first) for span in processes[name]] for name in sorted(processes)}
    )


def _apart(spans: Sequence[Span]) -> Iterable[tuple[str, Span]]:
    """Each span with its stream's track; one that is busy gets another one beside it."""
    ends: dict[str, list[int]] = {}
    for span in sorted(spans, key=lambda span: span.start_ns):
        stream = "compute" if span.track in COMPUTE else span.track
        lanes = ends.setdefault(stream, [])
        lane = next((n for n, end in enumerate(lanes) if end <= span.start_ns), len(lanes))
        lanes[lane : lane + 1] = [span.end_ns]
        yield (f"{stream} ({lane + 1})" if lane else stream), span


def moved(span: Span, by_ns: int) -> Span:
    """The same, later by so much."""
    return span._replace(start_ns=span.start_ns + by_ns, end_ns=span.end_ns + by_ns)


def _named(kind: str, name: str, process: int, track: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": {"name": name}}


def _event(span: Span, process: int, track: int) -> dict[str, Any]:
    where = {"micro_step": span.micro_step, "layer": span.layer}
    does = f"{span.track} " if span.track in COMPUTE and span.track != span.name else ""
    return {
        "ph": "X",
        "name": does + span.name + (f", layer {span.layer}" if span.layer >= 0 else ""),
        "cat": span.track,
        "pid": process,
        "tid": track,
        "ts": span.start_ns / 1e3,
        "dur": (span.end_ns - span.start_ns) / 1e3,
        "args": where
        | ({"bytes": span.nbytes} if span.nbytes else {})
        | (span.of._asdict() if span.of else {}),
    }


def _span(event: dict[str, Any]) -> Span:
    start, length = round(1e3 * event["ts"]), round(1e3 * event["dur"])
    if length <= 0:
        raise ValueError("duration")
    where = event["args"]
    of = None
    if "ep_group" in where:
        ep_group, step, stage, balanced = (where[key] for key in _OF)
        of = StageOfRun(str(ep_group), int(step), str(stage), bool(balanced))
    layer, track = int(where["layer"]), str(event["cat"])
    micro_step, nbytes = int(where["micro_step"]), int(where.get("bytes", 0))
    if max(map(abs, (start, length, layer, micro_step, nbytes))) > _LARGEST:
        raise ValueError("number, one is beyond all measure")
    return Span(
        track=track,
        name=str(event["name"]).removesuffix(f", layer {layer}").removeprefix(f"{track} "),
        start_ns=start,
        end_ns=start + length,
        micro_step=micro_step,
        layer=layer,
        nbytes=nbytes,
        of=of,
    )
