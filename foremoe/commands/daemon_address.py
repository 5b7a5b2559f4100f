"""The options of every command that listens as the daemon or asks it."""

import argparse

from foremoe.rpc.address import default_socket


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
