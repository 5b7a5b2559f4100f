"""Whether a unix socket is our own daemon's: another user may have made the folder before us.

The kernel would tell whom a connection leads to, gRPC does not. A daemon serves in a private folder
of its user only, so a folder of another user's, or one that others can write to, has none of ours.
"""

import os
from collections.abc import Callable
from typing import Any

import grpc

from foremoe.errors import InvalidInputError

SUPERUSER = 0


def check_own(path: str, shows_token: bool) -> None:
    """Raises InvalidInputError for a socket in another user's folder, or one open to others.

    A folder that is not there yet is fine. The superuser may ask any user's daemon, but shows its
    token to none.
    """
    folder = os.path.dirname(path) or "."
    try:
        status = os.stat(folder)
    except OSError:
        return
    user = os.geteuid()
    if status.st_uid != user and (shows_token or user != SUPERUSER):
        raise InvalidInputError(
            f"socket directory {folder} belongs to user {status.st_uid}, not to user {user}: what "
            "listens there is not this user's daemon; use the --socket that yours was started with"
        )
    if status.st_mode & 0o022:
        raise InvalidInputError(
            f"socket directory {folder} can be written to by other users "
            f"(mode {status.st_mode & 0o777:o}); what listens there may be theirs (chmod 700)"
        )


class TokenForOwnSocket(grpc.AuthMetadataPlugin):
    """Shows the token with every call, as long as the socket is our own daemon's."""

    def __init__(self, path: str, token: str) -> None:
        self._path = path
        self._shown = (("authorization", f"Bearer {token}"),)

    def __call__(self, _context: Any, callback: Callable[[Any, Exception | None], None]) -> None:
        try:
            check_own(self._path, shows_token=True)
        except InvalidInputError as error:
            callback((), error)
        else:
            callback(self._shown, None)
