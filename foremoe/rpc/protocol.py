"""Which versions of the protocol are spoken here, and how a caller says so with every call.

Fields and methods may come at any time: who does not know them does without. A change that would
mislead those who do not know it takes a new version. Callers name the versions they speak in their
user agent, and the daemon refuses those with whom it shares none, so that of two releases it does
not matter which is the older one.
"""

import re
from collections.abc import Iterable

from foremoe import __version__
from foremoe.errors import VersionError

SPOKEN = (1, 1)  # the oldest and the newest version
UNNAMED = (1, 1)  # callers that name none: other languages, and releases before versions were named
RELAYED = "foremoe-relayed"  # metadata of a call that comes by a follower: the caller's versions

_AGENT = re.compile(r"\bforemoe-protocol/(\d{1,9})-(\d{1,9})\b")
_RELAYED = re.compile(r"(\d{1,9})-(\d{1,9})")
Metadata = Iterable[tuple[str, str | bytes]]


def user_agent() -> str:
    """What a client's channel puts before gRPC's own user agent."""
    return f"foremoe/{__version__} foremoe-protocol/{SPOKEN[0]}-{SPOKEN[1]}"


def spoken_by(metadata: Metadata) -> tuple[int, int]:
    """The versions that a call's caller speaks, oldest and newest."""
    found = None
    for key, value in metadata:
        if key == RELAYED and (relayed := _RELAYED.fullmatch(str(value))):
            return int(relayed[1]), int(relayed[2])
        if key == "user-agent":
            found = _AGENT.search(str(value))
    return UNNAMED if found is None else (int(found[1]), int(found[2]))


def check_spoken(metadata: Metadata, spoken: tuple[int, int] = SPOKEN) -> None:
    """Raises VersionError unless the caller speaks one of the versions ``spoken`` here."""
    theirs = spoken_by(metadata)
    if theirs[1] < spoken[0] or theirs[0] > spoken[1]:
        raise VersionError(
            f"the runtime is of another version: ForeMoE {__version__} with protocol "
            f"{_words(spoken)}, the caller has protocol {_words(theirs)}; install releases that "
            "share one"
        )


def _words(versions: tuple[int, int]) -> str:
    oldest, newest = versions
    return str(oldest) if oldest == newest else f"{oldest} to {newest}"
