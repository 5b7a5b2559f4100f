"""Read spans back from a Chrome trace as ``foremoe.simulation.perfetto`` writes it."""

from pathlib import Path
from typing import Any

from foremoe.errors import InvalidInputError
from foremoe.report.timeline_chart import COMPUTE, is_compute
from foremoe.simulation.timeline import Span


def spans_of(path: Path, content: dict[str, Any]) -> dict[str, list[Span]]:
    """The spans of every process by its name, which is the stage; InvalidInputError.

    Events without a micro-step are another tool's and left out.
    """
    try:
        events = content["traceEvents"]
        names = {
            event["pid"]: str(event["args"]["name"])
            for event in events
            if event["ph"] == "M" and event["name"] == "process_name"
        }
        found: dict[str, list[Span]] = {}
        for event in events:
            if event["ph"] == "X" and "micro_step" in event.get("args", {}):
                process = names.get(event["pid"], f"process {event['pid']}")
                found.setdefault(process, []).append(_span(event))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InvalidInputError(
            f"{path}: is no Chrome trace of foremoe, an event has no good {error}"
        ) from error
    for process, spans in found.items():
        if not any(is_compute(span) for span in spans):
            raise InvalidInputError(f"{path}: {process} has no track {' or '.join(COMPUTE)}")
    if not found:
        raise InvalidInputError(f"{path}: holds no span of a micro-step")
    return found


def _span(event: dict[str, Any]) -> Span:
    start, length = round(1e3 * event["ts"]), round(1e3 * event["dur"])
    if length <= 0:
        raise ValueError("duration")
    where = event["args"]
    return Span(
        track=str(event["cat"]),
        name=str(event["name"]),
        start_ns=start,
        end_ns=start + length,
        micro_step=int(where["micro_step"]),
        layer=int(where["layer"]),
    )
