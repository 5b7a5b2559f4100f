"""Reading npz archives of plain arrays, with one-line errors and without pickle."""

import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError

# numpy parses the header of an array as Python, and believes it: damage there is a matter of
# syntax, or of room for an array that the file cannot hold.
DAMAGED = (
    ValueError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of the archive by name.

    Raises InvalidInputError if the file cannot be read, is damaged, or is no npz of plain arrays.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InvalidInputError(f"{path}: is a single array, expected an npz archive")
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DAMAGED as error:
        raise InvalidInputError(f"{path}: is no npz archive of plain arrays, or damaged") from error
