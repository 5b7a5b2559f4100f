"""What any message may contain at most, so that nobody can ask the daemon for absurd sizes."""

from collections.abc import Sequence
from itertools import pairwise

from foremoe.errors import InvalidInputError

NAME_CHARACTERS = 256
MAX_LAYERS = 4096
MAX_EXPERTS = 65536
MAX_RANKS = 65536
MAX_STEP = 2**63 - 1
UPLOAD_MESSAGE_BYTES = 1 << 20


def check_name(name: str, field: str) -> None:
    """Raises InvalidInputError unless ``name`` has 1 to NAME_CHARACTERS printable characters."""
    if not 1 <= len(name) <= NAME_CHARACTERS or not name.isprintable():
        raise InvalidInputError(
            f"{field}: a name has 1 to {NAME_CHARACTERS} printable characters, got {len(name)}: "
            f"{name[:80]!r}"
        )


def check_range(value: int, low: int, high: int, field: str) -> None:
    """Raises InvalidInputError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise InvalidInputError(f"{field}: must lie in [{low}, {high}], got {value}")


def check_layers(layers: Sequence[int], field: str) -> None:
    """Raises InvalidInputError unless ``layers`` are ascending decoder layer ids."""
    check_range(len(layers), 1, MAX_LAYERS, f"{field} (length)")
    if layers[0] < 0 or any(later <= earlier for earlier, later in pairwise(layers)):
        raise InvalidInputError(
            f"{field}: expected global layer ids in ascending order without repeats"
        )
    check_range(layers[-1], 0, 2**31 - 1, field)
