"""Who may call ForeMoE's services: whoever knows the job's token and has a name that is allowed."""

import hmac
from collections.abc import Iterable, Mapping, Sequence

from foremoe.errors import UnauthenticatedError

_NAMES = ("x509_common_name", "x509_subject_alternative_name", "peer_spiffe_id")


class Access:
    """Checks every call; says nothing of what it compared with.

    token: None asks for none. allowed_names: common or alternative names of client certificates;
    none for all that the authorities have signed. Connections without TLS have no names: their
    socket's directory lets only this user in, or they come from this machine's loopback.
    """

    def __init__(self, token: str | None, allowed_names: Sequence[str] = ()) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._allowed = frozenset(allowed_names)

    def check_token(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Raises UnauthenticatedError unless the call's metadata carries the token."""
        if self._expected is None:
            return
        shown = b""
        for key, value in metadata:
            if key == "authorization":
                shown = value if isinstance(value, bytes) else value.encode()
        if not hmac.compare_digest(shown, self._expected):
            raise UnauthenticatedError(
                "the job's token is missing or another one; set FOREMOE_TOKEN_FILE to the file "
                "that the daemon was started with (--token-file)"
            )

    def check_names(self, auth_context: Mapping[str, Iterable[bytes]]) -> None:
        """Raises UnauthenticatedError for a client certificate without an allowed name."""
        if not self._allowed or auth_context.get("transport_security_type") != [b"ssl"]:
            return
        names = {
            name.decode(errors="replace") for key in _NAMES for name in auth_context.get(key, ())
        }
        if not names & self._allowed:
            raise UnauthenticatedError(
                "this certificate's names are none of those that may connect (--tls-allow)"
            )
