"""The options of every command that listens as the daemon or asks it."""

import argparse
import os

from foremoe.rpc.address import default_socket
from foremoe.rpc.credentials import Credentials


def add_address(parser: argparse.ArgumentParser, tcp: str, tcp_help: str) -> None:
    """``--socket PATH``, or ``tcp`` (``--listen``, say) with HOST:PORT; both give ``address``."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        tcp, dest="address", metavar="HOST:PORT", default=f"unix:{default_socket()}", help=tcp_help
    )
    where.add_argument(
        "--socket",
        dest="address",
        metavar="PATH",
        type="unix:{}".format,
        help=f"the daemon's unix socket, in a private directory (default {default_socket()})",
    )


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """``--tls-cert``, ``--tls-key``, ``--tls-ca`` and ``--token-file``; see ``credentials_of``."""
    for option, text in (
        ("--tls-cert", "PEM certificate chain to show on TCP"),
        ("--tls-key", "its PEM key"),
        ("--tls-ca", "PEM certificates of the authorities that sign the other side's"),
        ("--token-file", "file with the job's token, for the daemon and all its clients"),
    ):
        variable = f"FOREMOE_{option[2:].replace('-', '_').upper()}"
        parser.add_argument(
            option,
            metavar="FILE",
            default=os.environ.get(variable) or None,
            help=f"{text} (default ${variable})",
        )


def credentials_of(options: argparse.Namespace) -> Credentials:
    """Raises InvalidInputError when only some of the TLS files are given."""
    return Credentials(options.tls_cert, options.tls_key, options.tls_ca, options.token_file)
