"""``foremoe config show``: every option's value and where it comes from.

It prints foremoe.toml as it would have to be for the same values, each with its source: flag, env,
file, default, or unset for what has no value. ``--json`` prints one object::

    {section: {key: {"value": value or null, "source": str}}}
"""

import argparse
import json
from collections.abc import Mapping

from foremoe.cli import CONFIGURED, command_parser
from foremoe.configuration import Configuration, Setting, options_of, suggestion
from foremoe.errors import InvalidInputError

EXAMPLE = "foremoe config show serve --max-steps 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "foremoe config show [-h] [--json] [COMMAND [ARGUMENT ...]]"
    parser.add_argument("--json", action="store_true", help="print JSON instead of TOML")
    parser.add_argument("action", choices=["show"], metavar="show")
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="COMMAND [ARGUMENT ...]",
        help="only this command's options, as they are with these arguments (default all commands)",
    )


def run(options: argparse.Namespace) -> int:
    """Print the settings of one command, or of all."""
    arguments = options.arguments
    if arguments[:1] in (["-h"], ["--help"]):
        command_parser("config").print_help()
        return 0
    if arguments[:1] == ["--json"]:  # argparse takes it for one of the rest
        options.json, arguments = True, arguments[1:]
    sections: dict[str, dict[str, Setting]] = {}
    for setting in _settings(options.configuration, arguments):
        sections.setdefault(setting.section, {})[setting.key] = setting
    print(_json(sections) if options.json else _toml(sections))
    return 0


def _settings(configuration: Configuration, arguments: list[str]) -> list[Setting]:
    if not arguments:
        parsers = {name: command_parser(name) for name in CONFIGURED}
        options = [options_of(name, parser) for name, parser in parsers.items()]
        return [setting for each in options for setting in configuration.settings(each)]
    command, *rest = arguments
    if command not in CONFIGURED:
        raise InvalidInputError(
            f"{command} is no command with options{suggestion(command, CONFIGURED)}"
        )
    parser = command_parser(command)
    if not rest:
        return configuration.settings(options_of(command, parser))
    return configuration.parse(command, parser, rest)[1]


def _json(sections: Mapping[str, Mapping[str, Setting]]) -> str:
    content = {
        section: {key: {"value": s.value, "source": s.source} for key, s in settings.items()}
        for section, settings in sections.items()
    }
    return json.dumps(content, indent=2, default=str)


def _toml(sections: Mapping[str, Mapping[str, Setting]]) -> str:
    blocks = []
    for section, settings in sections.items():
        lines = [(_assignment(setting), setting.source) for setting in settings.values()]
        width = max(len(line) for line, _ in lines)
        blocks.append(
            "\n".join([f"[{section}]", *(f"{line:{width}}  # {why}" for line, why in lines)])
        )
    return "\n\n".join(blocks)


def _assignment(setting: Setting) -> str:
    if setting.value is None:
        return f"# {setting.key} ="
    # JSON's strings, numbers, booleans and lists are TOML's too.
    return f"{setting.key} = {json.dumps(setting.value, default=str)}"
