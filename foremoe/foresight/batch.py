"""Batches padded to one length, as trainers hold them, and npz files of such batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.npz import read_npz


def split_batch(
    sequences: Sequence[str], ids: NDArray[Any], mask: NDArray[Any], field: str
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Name, ids ``[length, layers, top_k]`` and mask ``[length]`` of each sequence of a batch.

    Raises InvalidInputError, naming ``field``, unless ids are ``[batch, length, layers, top_k]``,
    mask holds numbers or booleans ``[batch, length]``, and there is a name for each sequence.
    """
    ids, mask = np.asarray(ids), np.asarray(mask)
    if mask.dtype.kind not in "biuf":
        raise InvalidInputError(f"{field}: expected a mask of numbers, got {mask.dtype}")
    if ids.ndim != 4 or mask.shape != ids.shape[:2] or len(sequences) != len(ids):
        raise InvalidInputError(
            f"{field}: expected [batch, length, layers, top_k] with a mask [batch, length] and "
            f"{len(sequences)} names, got {list(ids.shape)} and {list(mask.shape)}"
        )
    yield from zip(sequences, ids, mask, strict=True)


def read_batch(path: Path, ids: str, mask: str) -> tuple[list[str], NDArray[Any], NDArray[Any]]:
    """Places in the file as sequence names, ids and mask of an npz.

    Raises InvalidInputError if the file cannot be read, is no npz of plain arrays, or has not both
    arrays.
    """
    arrays = read_npz(path)
    for name in (ids, mask):
        if name not in arrays:
            raise InvalidInputError(f"{path}: array {name} is missing; it has {', '.join(arrays)}")
    count = len(arrays[ids]) if arrays[ids].ndim else 0
    return [f"{path}[{index}]" for index in range(count)], arrays[ids], arrays[mask]
