"""The ``foremoe`` command."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from foremoe import __version__
from foremoe.configuration import SHARED, Configuration, options_of, suggestion
from foremoe.errors import ForemoeError, InvalidInputError

COMMANDS = {
    "advise": "size EP, ETP, spare slots and host cache for a model and a cluster",
    "check": "look whether this node is ready: versions, transports, limits, daemon",
    "completion": "print a script that completes commands and options in your shell",
    "config": "print what options are set to, and where each value comes from",
    "convert": "turn recorded routing of an engine or trainer into a trace for foremoe plan",
    "demo": "post-train a small MoE model with RL, balanced and unbalanced, and compare",
    "plan": "plan a recorded routing trace offline and print what balancing gains",
    "report": "write a page of figures from plans, a run, a timeline or a running daemon",
    "serve": "run the runtime daemon of this node",
    "simulate": "estimate an RL step on a cluster, balanced by different policies",
    "status": "print what a running daemon holds",
    "top": "watch a running daemon: steps, imbalance, ranks, copies",
}
CONFIGURED = sorted(COMMANDS.keys() - {"completion", "config"})  # commands with a section


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, as all our errors do."""

    def error(self, message: str) -> NoReturn:
        close = self._suggestion(message)
        raise InvalidInputError(f"{message}{close}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Overridden: of a long list of choices the one that was meant is enough."""
        if action.choices is not None and value not in action.choices:
            close = suggestion(str(value), [str(choice) for choice in action.choices])
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{close}")

    def _suggestion(self, message: str) -> str:
        """For a misspelt flag; a list of all flags would be no help."""
        before, _, word = message.partition("unrecognized arguments: ")
        close = "" if before else suggestion(word.split(" ")[0], self._option_string_actions)
        return close if "did you mean" in close else ""


def main(argv: list[str] | None = None) -> int:
    """Run one command; docs/operations.md has the exit codes."""
    program = "foremoe"
    try:
        given = _top_parser().parse_args(argv)
        if given.command is None:
            raise InvalidInputError("needs a command; see foremoe --help")
        if given.command not in COMMANDS:
            close = suggestion(given.command, COMMANDS)
            raise InvalidInputError(f"there is no command {given.command}{close}")
        program = f"foremoe {given.command}"
        return _run(given)
    except ForemoeError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(given: argparse.Namespace) -> int:
    module = command_module(given.command)
    parser = command_parser(given.command)
    if {"-h", "--help"} & set(given.arguments):
        parser.parse_args(given.arguments)
    configuration = Configuration.load(given.config, os.environ)
    configuration.check({*CONFIGURED, *SHARED.values()}, section_keys)
    options, _ = configuration.parse(given.command, parser, given.arguments)
    options.configuration = configuration
    return int(module.run(options))


def command_module(command: str) -> Any:
    """Imported when it is needed, and only it: some commands load a lot."""
    return importlib.import_module(f"foremoe.commands.{command}")


def command_parser(command: str) -> argparse.ArgumentParser:
    """The parser of one command's arguments."""
    parser = Parser(prog=f"foremoe {command}", description=COMMANDS[command])
    return _filled(parser, command)


def full_parser() -> argparse.ArgumentParser:
    """The parser of everything."""
    parser = Parser(prog="foremoe")
    _add_globals(parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    for command, summary in COMMANDS.items():
        _filled(commands.add_parser(command, help=summary), command)
    return parser


def section_keys(section: str) -> set[str]:
    """What a section of foremoe.toml may hold."""
    if section in SHARED.values():
        return {key for key, where in SHARED.items() if where == section}
    options = options_of(section, command_parser(section)).values()
    return {option.key for option in options if option.section == section}


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="foremoe",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="foremoe [--config FILE] COMMAND ...",
        description="Expert load balance per micro-step, from routing foresight.",
        epilog=f"commands:\n{listed}\n\nexample:\n  foremoe serve --help",
    )
    _add_globals(parser)
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _add_globals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"foremoe {__version__}")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read options from this file (default foremoe.toml, if it is there)",
    )


def _filled(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    module = command_module(command)
    module.add_arguments(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"example:\n  {module.EXAMPLE}"
    return parser


if __name__ == "__main__":
    sys.exit(main())
