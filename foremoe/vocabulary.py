"""Words every room shares; docs/architecture.md has the glossary."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage of an RL step that is balanced from foresight."""

    RECOMPUTE = "recompute"
    UPDATE = "update"
