"""Every error ForeMoE raises for its users, each with a message that says what to do.

The runtime maps these classes to gRPC status codes and the client maps the codes back, so a caller
sees the same class on both sides of the socket. The CLI prints the message and exits with 2.
"""


class ForemoeError(Exception):
    """Base class: bad input, bad state or a lost peer; never a bug of ours."""


class InvalidInputError(ForemoeError):
    """The request or file itself is wrong; sending it again cannot help."""


class UnknownError(ForemoeError):
    """A step, sequence, EP group or rank is named that the runtime does not know."""


class ConflictError(ForemoeError):
    """The request contradicts what was accepted before; the earlier state stands."""


class NotReadyError(ForemoeError):
    """The request is fine but comes too early or too late in the step's life."""


class ExhaustedError(ForemoeError):
    """A configured limit (bytes, steps, streams) would be exceeded."""


class UnavailableError(ForemoeError):
    """No runtime answers at the address, or it is shutting down."""


class LeaderLostError(UnavailableError):
    """The node's runtime answers, but the leader that it follows does not, or refuses it."""


class VersionError(ForemoeError):
    """Caller and runtime are of versions that do not understand each other."""


class UnauthenticatedError(ForemoeError):
    """The caller did not show the job's token, or not a certificate that the runtime accepts."""


class StaleGenerationError(ForemoeError):
    """A replica's source holds weights of another generation than the one asked for."""


class TransferError(ForemoeError):
    """Expert weights or gradients could not be moved by any path."""


class DemoError(ForemoeError):
    """A process of the demo ended before its work was done."""
