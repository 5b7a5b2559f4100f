"""Words every room shares; docs/architecture.md has the glossary."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage of an RL step that is balanced from foresight."""

    RECOMPUTE = "recompute"
    UPDATE = "update"


class DegradedReason(StrEnum):
    """Why a rank ran a micro-step without its plan, or without all of its replicas.

    A cause comes before what follows from it.
    """

    NO_RUNTIME = "no runtime"
    RUNTIME_LOST = "runtime lost"
    LEADER_LOST = "leader lost"
    OTHER_VERSION = "the runtime is of another version"
    NO_PLAN = "no plan in time"
    OTHER_LAYOUT = "the plan is for another model layout"
    LATE_COPIES = "replicas dropped: their copies would be late"
    OTHER = "other"
    OTHER_RANK = "another rank holds no such plan"
