"""Files that commands write: asked about before the work, written after it."""

import json
from pathlib import Path
from typing import Any

from foremoe.errors import InvalidInputError


def check_writable(**outputs: Path | None) -> None:
    """Of options by name; before minutes of work, not after. Leaves no new file behind.

    Raises InvalidInputError for the first that cannot be written.
    """
    for name, path in outputs.items():
        if path is None:
            continue
        existed = path.exists()
        try:
            path.open("a").close()
        except OSError as error:
            raise InvalidInputError(f"--{name}: cannot write {path}: {error.strerror}") from None
        if not existed:
            path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Indented; InvalidInputError if ``path`` cannot be written."""
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error
