"""What ``foremoe check`` finds out about one thing."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """``FAILED`` decides the exit code; ``WARNING`` costs something that is not necessary."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table. cure: what to do about it, empty for ``OK``."""

    what: str
    state: State
    found: str
    cure: str = ""


def finding(what: str, works: bool, found: str, cure: str, *, necessary: bool) -> Finding:
    """A row from a condition that should hold."""
    if works:
        return Finding(what, State.OK, found)
    return Finding(what, State.FAILED if necessary else State.WARNING, found, cure)
