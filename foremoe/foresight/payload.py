"""Arrays as carriers wrap them: base64, raw bytes with dtype and shape, npy. Never pickle."""

import base64
import binascii
import io
import math
import tokenize
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError

# What numpy raises over a damaged .npy; the header is parsed as Python.
_NPY_FAULTS = (ValueError, EOFError, OSError, MemoryError, SyntaxError, tokenize.TokenError)


def decode_base64(text: Any, field: str) -> bytes:
    """Raises InvalidInputError, naming ``field``, unless ``text`` is base64."""
    if not isinstance(text, str):
        raise InvalidInputError(f"{field}: expected a base64 string, got {type(text).__name__}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(f"{field}: is no base64 ({error})") from None


def raw_array(
    data: bytes, dtype: Any, shape: Any, field: str, dtypes: Sequence[str]
) -> NDArray[Any]:
    """C-order little-endian ``data`` as an array of ``shape``; read only, not copied.

    Raises InvalidInputError, naming ``field``, when dtype, shape and length disagree.
    """
    if dtype not in dtypes:
        raise InvalidInputError(f"{field}.dtype: expected {' or '.join(dtypes)}, got {dtype!r}")
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 3
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise InvalidInputError(f"{field}.shape: expected [tokens, layers, top_k], got {shape!r}")
    kind = np.dtype(dtype).newbyteorder("<")
    if len(data) != math.prod(shape) * kind.itemsize:
        raise InvalidInputError(
            f"{field}: {dtype} {list(shape)} takes {math.prod(shape) * kind.itemsize} bytes, "
            f"got {len(data)}"
        )
    return np.frombuffer(data, kind).reshape(shape)


def wire_array(payload: Any, field: str, dtypes: Sequence[str]) -> NDArray[Any]:
    """``{"data": bytes or base64, "dtype": ..., "shape": [tokens, layers, top_k]}`` as an array.

    Raises InvalidInputError, naming ``field``, as ``raw_array`` does.
    """
    if not isinstance(payload, dict):
        raise InvalidInputError(
            f"{field}: expected an object with data, dtype and shape, got {type(payload).__name__}"
        )
    for name in ("data", "dtype", "shape"):
        if name not in payload:
            raise InvalidInputError(f"{field}.{name}: is missing")
    data = payload["data"]
    if not isinstance(data, bytes):
        data = decode_base64(data, f"{field}.data")
    return raw_array(data, payload["dtype"], payload["shape"], field, dtypes)


def nested_array(payload: Any, dimensions: int, field: str) -> NDArray[np.int32]:
    """Lists of integers in lists, ``dimensions`` deep, as an int32 array.

    Raises InvalidInputError, naming ``field``, for another depth, lists of unlike length, and what
    is no integer of 32 bits: neither text nor a number with a fraction is turned into one.
    """
    try:
        array = np.array(payload)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.ndim == dimensions and array.dtype == np.int64:
        ids = array.astype(np.int32)
        if np.array_equal(ids, array):
            return ids
    axes = ", ".join(("tokens", "layers", "top_k")[:: 1 if dimensions == 3 else 2])
    raise InvalidInputError(f"{field}: expected integers of 32 bits nested as [{axes}]")


def npy_array(data: bytes, field: str) -> NDArray[Any]:
    """The bytes of an ``.npy`` file; raises InvalidInputError, naming ``field``, if they are none.

    A pickled object array is refused, not loaded.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except _NPY_FAULTS as error:
        raise InvalidInputError(f"{field}: is no .npy of a plain array ({error})") from None
    if not isinstance(array, np.ndarray):
        raise InvalidInputError(f"{field}: is an npz archive, expected one .npy array")
    return array
