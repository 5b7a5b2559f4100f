"""Who a client or daemon is, and whom it believes: files for mutual TLS, and the job's token."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from foremoe.errors import InvalidInputError

TOKEN_CHARACTERS = (16, 512)


@dataclass(frozen=True, slots=True)
class TlsPem:
    """Contents of the three files."""

    cert: bytes
    key: bytes
    ca: bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    """Paths; the files are read for every new connection, so they can be replaced at any time.

    tls_cert, tls_key: PEM certificate chain and key to show. tls_ca: PEM certificates of the
    authorities that sign the other side's. All three or none. token_file: the secret of the job.

    Raises InvalidInputError when only some of the TLS files are named.
    """

    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    token_file: str | None = None

    def __post_init__(self) -> None:
        missing = [name for name in ("tls_cert", "tls_key", "tls_ca") if not getattr(self, name)]
        if 0 < len(missing) < 3:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise InvalidInputError(f"mutual TLS needs three files; {options} not given")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Credentials":
        """From FOREMOE_TLS_CERT, FOREMOE_TLS_KEY, FOREMOE_TLS_CA and FOREMOE_TOKEN_FILE."""
        return cls(*(environment.get(f"FOREMOE_{one.name.upper()}") or None for one in fields(cls)))

    @property
    def has_tls(self) -> bool:
        return self.tls_cert is not None

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Differs when a file was written, replaced or removed."""
        return tuple(_stamp(path) for one in fields(self) if (path := getattr(self, one.name)))

    def read_tls(self) -> TlsPem | None:
        """None without TLS.

        Raises InvalidInputError when a file cannot be read, all users can read the key, or
        certificate and key do not belong together.
        """
        if not (self.tls_cert and self.tls_key and self.tls_ca):
            return None
        ca = _read(self.tls_ca, "--tls-ca")
        pem = TlsPem(
            _read(self.tls_cert, "--tls-cert"), _read_secret(self.tls_key, "--tls-key"), ca
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # An encrypted key would ask for its passphrase on the terminal.
            context.load_cert_chain(self.tls_cert, self.tls_key, password=lambda: b"")
        except (ssl.SSLError, ValueError) as error:
            raise InvalidInputError(
                f"--tls-cert {self.tls_cert} and --tls-key {self.tls_key}: no PEM certificate and "
                f"its unencrypted key ({_reason(error)})"
            ) from None
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise InvalidInputError(
                f"--tls-ca {self.tls_ca}: no PEM certificates ({_reason(error)})"
            ) from None
        return pem

    def read_token(self) -> str | None:
        """None without a token file. Raises InvalidInputError when there is no fit token in it."""
        if not self.token_file:
            return None
        token = _read_secret(self.token_file, "--token-file").strip()
        low, high = TOKEN_CHARACTERS
        if not low <= len(token) <= high or not all(33 <= byte <= 126 for byte in token):
            raise InvalidInputError(
                f"--token-file {self.token_file}: a token has {low} to {high} printable ASCII "
                "characters without spaces; make one with: openssl rand -hex 32"
            )
        return token.decode("ascii")


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: str, option: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{option} {path}: cannot be read ({error.strerror})") from None


def _read_secret(path: str, option: str) -> bytes:
    content = _read(path, option)
    if Path(path).stat().st_mode & 0o007:
        raise InvalidInputError(f"{option} {path}: every user has access to it; chmod 600 it")
    return content


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error).partition("\n")[0]
