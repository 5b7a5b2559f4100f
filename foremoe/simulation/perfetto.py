"""Spans as a Chrome trace (JSON), which Perfetto and chrome://tracing open: one track per stream.

Format: "Trace Event Format", complete events (``"ph": "X"``), microseconds.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foremoe.errors import InvalidInputError
from foremoe.simulation.timeline import Span


def write_trace(path: Path, processes: Mapping[str, Sequence[Span]]) -> None:
    """One process per name, one track per stream; InvalidInputError if ``path`` is not writable."""
    events: list[dict[str, Any]] = []
    for process, (name, spans) in enumerate(processes.items()):
        events.append(_named("process_name", name, process, 0))
        tracks = {track: index for index, track in enumerate(dict.fromkeys(s.track for s in spans))}
        events += [_named("thread_name", track, process, tid) for track, tid in tracks.items()]
        events += [_event(span, process, tracks[span.track]) for span in spans]
    try:
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error


def _named(kind: str, name: str, process: int, track: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": {"name": name}}


def _event(span: Span, process: int, track: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": f"{span.name}, layer {span.layer}",
        "cat": span.track,
        "pid": process,
        "tid": track,
        "ts": span.start_ns / 1e3,
        "dur": (span.end_ns - span.start_ns) / 1e3,
        "args": {"micro_step": span.micro_step, "layer": span.layer},
    }
