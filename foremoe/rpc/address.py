"""Where a daemon listens: a unix socket path or a TCP host and port."""

import ipaddress
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from foremoe.errors import InvalidInputError

SOCKET_PATH_BYTES = 107  # sockaddr_un on Linux, without the closing zero


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket."""

    path: str

    @property
    def target(self) -> str:
        """The address as gRPC writes it."""
        return f"unix:{self.path}"

    @property
    def serve_option(self) -> str:
        """The option of ``foremoe serve`` that makes a daemon listen here."""
        return f"--socket {self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP endpoint; ``host`` is a name or a literal address without brackets."""

    host: str
    port: int

    @property
    def target(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def serve_option(self) -> str:
        return f"--listen {self.target}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """``/path`` or ``unix:/path`` is a unix socket, ``host:port`` a TCP endpoint.

    Raises InvalidInputError for anything else and for a socket path the system cannot bind.
    """
    if text.startswith("unix:") or "/" in text:
        path = text.removeprefix("unix:")
        if not path or len(path.encode()) > SOCKET_PATH_BYTES:
            raise InvalidInputError(
                f"address: a unix socket path has 1 to {SOCKET_PATH_BYTES} bytes, "
                f"got {len(path.encode())}; choose a shorter one"
            )
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidInputError(
            f"address: {text!r} is neither a unix socket path (with a /) nor HOST:PORT"
        )
    return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))


def default_socket() -> Path:
    """Where ``foremoe serve`` listens and ``foremoe status`` asks when nothing else is said."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "foremoe" / "runtime.sock"
    return Path(tempfile.gettempdir()) / f"foremoe-{os.getuid()}" / "runtime.sock"
