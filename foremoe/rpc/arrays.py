"""numpy arrays as wire messages and back; both sides of the socket use this."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.rpc.v1.array_pb2 import Array, DataType

if sys.byteorder != "little":
    raise ImportError("foremoe.rpc sends arrays in little-endian order; this machine is not")

DTYPES: dict[int, np.dtype[Any]] = {
    DataType.DATA_TYPE_UINT8: np.dtype(np.uint8),
    DataType.DATA_TYPE_UINT16: np.dtype(np.uint16),
    DataType.DATA_TYPE_UINT32: np.dtype(np.uint32),
    DataType.DATA_TYPE_INT32: np.dtype(np.int32),
    DataType.DATA_TYPE_INT64: np.dtype(np.int64),
    DataType.DATA_TYPE_FLOAT64: np.dtype(np.float64),
}
WIRE_TYPES = {dtype: wire_type for wire_type, dtype in DTYPES.items()}


def encode_array(array: NDArray[Any]) -> Array:
    """An Array message with a copy of ``array``; its dtype must be one of DTYPES."""
    return Array(
        data_type=WIRE_TYPES[array.dtype],  # type: ignore[arg-type]
        shape=array.shape,
        data=array.tobytes(),
    )


def decode_array(
    message: Array, field: str, dtypes: Sequence[type], shape: Sequence[int | None]
) -> NDArray[Any]:
    """A read-only view of the message's bytes; None in ``shape`` takes any length.

    Raises InvalidInputError, naming ``field``, when type, shape or byte count are not as asked.
    """
    dtype = DTYPES.get(message.data_type)
    if dtype is None or dtype.type not in dtypes:
        wanted = " or ".join(np.dtype(kind).name for kind in dtypes)
        given = f"data_type {int(message.data_type)}" if dtype is None else dtype.name
        raise InvalidInputError(f"{field}: expected {wanted}, got {given}")
    given_shape = tuple(message.shape)
    if len(given_shape) != len(shape) or any(
        want is not None and have != want for have, want in zip(given_shape, shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise InvalidInputError(f"{field}: expected shape [{wanted}], got {list(given_shape)[:8]}")
    data = message.data
    size = math.prod(given_shape) * dtype.itemsize
    if len(data) != size:
        raise InvalidInputError(
            f"{field}: shape {list(given_shape)} of {dtype.name} needs {size} bytes, "
            f"got {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(given_shape)
