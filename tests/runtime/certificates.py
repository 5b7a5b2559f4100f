"""Authorities and certificates of a test, made by openssl."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from foremoe.rpc.credentials import Credentials

_EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


class Authority:
    """Signs certificates; its own is ``ca``. Everything lies in ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.ca = folder / "ca.pem"
        _openssl("req", "-x509", *_EC_KEY, "-subj", "/CN=authority", "-out", self.ca,
                 "-keyout", folder / "ca.key")  # fmt: skip

    def issue(self, name: str, *alternative: str, file: str = "") -> Credentials:
        """A certificate for ``name`` and, say, ``IP:127.0.0.1``, put in place in one move each."""
        file = file or name
        names = ",".join([f"DNS:{name}", "DNS:localhost", "IP:127.0.0.1", *alternative])
        made = {end: self._folder / f"{file}.{end}.new" for end in ("pem", "key")}
        _openssl("req", "-x509", *_EC_KEY, "-subj", f"/CN={name}", "-addext",
                 f"subjectAltName={names}", "-CA", self.ca, "-CAkey", self._folder / "ca.key",
                 "-out", made["pem"], "-keyout", made["key"])  # fmt: skip
        for end, path in made.items():
            os.replace(path, self._folder / f"{file}.{end}")
        return Credentials(
            str(self._folder / f"{file}.pem"), str(self._folder / f"{file}.key"), str(self.ca)
        )


def tls_options(credentials: Credentials) -> list[str]:
    """As a command takes them."""
    given = {
        "--tls-cert": credentials.tls_cert,
        "--tls-key": credentials.tls_key,
        "--tls-ca": credentials.tls_ca,
        "--token-file": credentials.token_file,
    }
    return [word for option, value in given.items() if value for word in (option, value)]


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
