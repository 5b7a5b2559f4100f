"""One daemon per socket: a private directory and a lock file beside the socket.

gRPC binds a unix socket that another server listens on without a word and takes its clients; a
lock that dies with its holder prevents that, and lets a stale socket file be bound again.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foremoe.errors import ConflictError, InvalidInputError


@contextmanager
def hold_socket(path: Path) -> Iterator[None]:
    """Hold the right to listen at ``path``; the socket file is removed at the end.

    Raises ConflictError, naming its pid, when another daemon holds it, InvalidInputError when the
    directory cannot be made or written to, or others can enter it.
    """
    make_private(path.parent)
    lock_path = path.with_name(f"{path.name}.lock")
    with _explained(path.parent):
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise ConflictError(
                f"another daemon (pid {holder}) serves {path}; stop it or choose another --socket"
            ) from None
        with _explained(path.parent):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def make_private(directory: Path) -> None:
    """Make ``directory`` with mode 0700, or check that only this user can enter it.

    Raises InvalidInputError otherwise.
    """
    with _explained(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    if status.st_uid != os.geteuid():
        raise InvalidInputError(
            f"socket directory {directory} belongs to user {status.st_uid}; "
            "choose a --socket in a directory of your own"
        )
    if status.st_mode & 0o077:
        raise InvalidInputError(
            f"socket directory {directory} is open to other users "
            f"(mode {status.st_mode & 0o777:o}); choose a --socket in a private one (chmod 700)"
        )


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """What the system refuses in ``directory``, say because it is full, as InvalidInputError."""
    try:
        yield
    except OSError as error:
        raise InvalidInputError(
            f"socket directory {directory}: {error.strerror}; choose another --socket"
        ) from None
