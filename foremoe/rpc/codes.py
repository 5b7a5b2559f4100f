"""Error classes as gRPC status codes, and back."""

import grpc

from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    ForemoeError,
    InvalidInputError,
    LeaderLostError,
    NotReadyError,
    UnauthenticatedError,
    UnavailableError,
    UnknownError,
    VersionError,
)
from foremoe.rpc.address import Address, TcpAddress

CODES: dict[type[ForemoeError], grpc.StatusCode] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownError: grpc.StatusCode.NOT_FOUND,
    ConflictError: grpc.StatusCode.ALREADY_EXISTS,
    NotReadyError: grpc.StatusCode.FAILED_PRECONDITION,
    ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LeaderLostError: grpc.StatusCode.UNAVAILABLE,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    VersionError: grpc.StatusCode.UNIMPLEMENTED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
}
_CLASSES = {code: kind for kind, code in CODES.items()}


_OWN_WORDS = ("the runtime ", "the leader ")  # what a daemon says itself begins with
_LEADER = _OWN_WORDS[1]
_TLS_WORDS = ("handshake failed", "verification check failed")


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
    known = daemon_error(error)
    if known is not None:
        return known
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(_nobody(address, details))
    return ForemoeError(f"the runtime at {address.target} failed ({code.name}): {details}")


def daemon_error(error: grpc.RpcError) -> ForemoeError | None:
    """What a daemon answered; None when it was not a daemon that ended the call, or a fault."""
    details = error.details() or ""
    kind = _CLASSES.get(error.code())
    if kind is VersionError and not details.startswith(_OWN_WORDS):
        return VersionError(
            "the runtime is of another version: it does not know this call; install the same "
            "release on both sides"
        )
    if kind is UnavailableError:
        if not details.startswith(_OWN_WORDS):
            return None
        kind = LeaderLostError if details.startswith(_LEADER) else kind
    return None if kind is None else kind(details)


def _nobody(address: Address, details: str) -> str:
    if any(words in details for words in _TLS_WORDS):
        return (
            f"the certificate shown at {address.target} is not accepted here; check that --tls-ca "
            "signed it, that it names this host, and that both sides use TLS"
        )
    closed = ""
    if isinstance(address, TcpAddress) and "Socket closed" in details:  # all that TLS lets us know
        closed = " (the connection was closed; does it expect TLS and another certificate?)"
    return (
        f"no runtime answers at {address.target}{closed}; "
        f"start one with: foremoe serve {address.serve_option}"
    )
