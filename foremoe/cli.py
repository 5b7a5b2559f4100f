"""The ``foremoe`` command."""

import argparse
import importlib
import sys

from foremoe import __version__
from foremoe.errors import ForemoeError

COMMANDS = {
    "convert": "turn recorded routing of an engine or trainer into a trace for foremoe plan",
    "demo": "post-train a small MoE model with RL, balanced and unbalanced, and compare",
    "plan": "plan a recorded routing trace offline and print what balancing gains",
    "serve": "run the runtime daemon of this node",
    "status": "print what a running daemon holds",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; exit code 2 and one line on stderr for anything the user can mend."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="foremoe", description="Expert load balance per micro-step, from routing foresight."
    )
    parser.add_argument("--version", action="version", version=f"foremoe {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if arguments[:1] == [name]:  # import only the command that runs: torch takes seconds
            module = importlib.import_module(f"foremoe.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ForemoeError as error:
        print(f"foremoe {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"foremoe {options.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
