"""From what a user names, a file or a folder, to chapters."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foremoe.errors import InvalidInputError
from foremoe.planner.archive import load_plans
from foremoe.planner.problem import Topology
from foremoe.planner.validate import validate
from foremoe.report.chart import Chapter
from foremoe.report.daemon_chapter import daemon_chapter
from foremoe.report.demo_chapter import demo_chapters
from foremoe.report.plans_chapter import Hardware, plans_chapter
from foremoe.report.plans_run import PlansRun
from foremoe.report.policies_chapter import policies_chapter
from foremoe.report.timeline_chapter import shows_compute, timeline_chapter
from foremoe.rpc.status_file import SUFFIX, load_status
from foremoe.timeline.chrome_trace import merged, read_trace, recorded_traces

SUFFIXES = (".json", ".npz", SUFFIX)


def chapters_of(
    path: Path, nodes: int = 1, hardware: Hardware | None = None, ep_group: str | None = None
) -> list[Chapter]:
    """Those of each file, in the order of their names. Raises InvalidInputError.

    nodes: that the ranks of plans are on. hardware: what plans would run on. ep_group: of a
    daemon's, None for the worst balanced.
    """
    if not path.is_dir():
        return _chapters(path, nodes, hardware, ep_group)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise InvalidInputError(f"{path}: holds no {', '.join(SUFFIXES)} file")
    recorded = recorded_traces(files)
    others = [file for file in files if file not in recorded]
    chapters = [
        chapter for file in others for chapter in _chapters(file, nodes, hardware, ep_group)
    ]
    if not recorded:
        return chapters
    trace = merged(recorded.values())
    if chapters and not shows_compute(trace):  # a daemon's part, which its status has as well
        return chapters
    return [*chapters, timeline_chapter(path, trace)]


def _chapters(
    path: Path, nodes: int, hardware: Hardware | None, ep_group: str | None
) -> list[Chapter]:
    if path.suffix == ".npz":
        return [plans_chapter(_plans(path, nodes), hardware)]
    if path.suffix == SUFFIX:
        return [daemon_chapter(load_status(path), str(path), ep_group)]
    content = _json(path)
    for key, make in _KINDS.items():
        first = content[0] if isinstance(content, list) and content else content
        if isinstance(first, dict) and key in first:
            return make(path, content)
    raise InvalidInputError(
        f"{path}: is neither of foremoe plan --json, foremoe demo --json nor a Chrome trace; "
        "name only files that a page can be made of"
    )


def _plans(path: Path, nodes: int) -> PlansRun:
    plans = load_plans(path)
    if not plans or not plans[0].load.size:
        raise InvalidInputError(f"{path}: holds no plan")
    ranks, slots = plans[0].replica_expert.shape[1:]
    if nodes < 1 or ranks % nodes:
        raise InvalidInputError(f"--nodes: {ranks} ranks cannot be shared evenly by {nodes} nodes")
    topology = Topology(ranks, ranks // nodes)
    for index, plan in enumerate(plans):
        try:
            validate(plan, plan.load, topology, slots)
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: micro-step {index}: {error}") from error
    return PlansRun(str(path), plans, topology)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path}: is no JSON ({error})") from error


def _timeline(path: Path, content: Any) -> list[Chapter]:
    return [timeline_chapter(path, read_trace(path, content))]


def _policies(path: Path, content: Any) -> list[Chapter]:
    return [policies_chapter(path, content)]


_KINDS: dict[str, Callable[[Path, Any], list[Chapter]]] = {
    "traceEvents": _timeline,
    "policy": _policies,
    "stages": demo_chapters,
}
