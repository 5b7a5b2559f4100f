"""Error classes as gRPC status codes, and back."""

import grpc

from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    ForemoeError,
    InvalidInputError,
    NotReadyError,
    UnavailableError,
    UnknownError,
)
from foremoe.rpc.address import Address

CODES: dict[type[ForemoeError], grpc.StatusCode] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownError: grpc.StatusCode.NOT_FOUND,
    ConflictError: grpc.StatusCode.ALREADY_EXISTS,
    NotReadyError: grpc.StatusCode.FAILED_PRECONDITION,
    ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}
_CLASSES = {code: kind for kind, code in CODES.items()}


def local_error(error: grpc.RpcError, address: Address) -> ForemoeError:
    """The error that a failed call to the daemon at ``address`` means for the caller.

    A call that found nobody names the command that starts a daemon; a fault of the daemon's own
    becomes a plain ForemoeError with the id under which the daemon logged it.
    """
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnavailableError(f"the runtime at {address.target} did not answer in time")
    if code is grpc.StatusCode.CANCELLED:
        return UnavailableError(f"the call to the runtime at {address.target} was cancelled")
    if code is grpc.StatusCode.UNAVAILABLE and "draining" not in details:
        return UnavailableError(
            f"no runtime answers at {address.target}; "
            f"start one with: foremoe serve {address.serve_option}"
        )
    kind = _CLASSES.get(code)
    if kind is None:
        return ForemoeError(f"the runtime at {address.target} failed ({code.name}): {details}")
    return kind(details)
