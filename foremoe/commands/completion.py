"""``foremoe completion``: a script for the shell, to be sourced or installed."""

import argparse

import shtab

from foremoe.cli import full_parser

EXAMPLE = "foremoe completion bash > ~/.local/share/bash-completion/completions/foremoe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="the shell you use")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    print(shtab.complete(full_parser(), options.shell))
    return 0
