"""Where an option's value comes from: flag, environment, file, default; the first that has it.

The one definition of an option is its argparse argument. ``--max-steps`` of ``foremoe serve`` is
the key ``max_steps`` of the section ``[serve]`` in foremoe.toml and FOREMOE_SERVE__MAX_STEPS in the
environment. What all need who reach a daemon, its address and credentials, is in ``[daemon]``.
"""

import argparse
import difflib
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foremoe.errors import InvalidInputError

FILE_NAME = "foremoe.toml"
PREFIX = "FOREMOE_"
_SHARED = ("address", "tls_cert", "tls_key", "tls_ca", "token_file")
SHARED = dict.fromkeys(_SHARED, "daemon")  # destination of options in several commands: section
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """What a command can be told by a flag, and so by the environment and the file."""

    section: str
    key: str
    action: argparse.Action

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"{PREFIX}{self.section}__{self.key}".upper()


@dataclass(frozen=True, slots=True)
class Setting:
    """An option's value and where it comes from; source is "unset" for a required one without."""

    section: str
    key: str
    value: Any
    source: str


def options_of(command: str, parser: argparse.ArgumentParser) -> dict[str, Option]:
    """The options of a command's parser by destination; not its positional arguments."""
    options: dict[str, Option] = {}
    for action in parser._actions:
        names = [name for name in action.option_strings if name.startswith("--")]
        if not names or action.default is argparse.SUPPRESS:
            continue
        section = SHARED.get(action.dest, command)
        key = action.dest if action.dest in SHARED else names[0][2:].replace("-", "_")
        options.setdefault(action.dest, Option(section, key, action))
    return options


@dataclass(frozen=True)
class Configuration:
    """What the file and the environment say: raw value and source by section and key."""

    values: Mapping[tuple[str, str], tuple[Any, str]] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path | None, environment: Mapping[str, str]) -> "Configuration":
        """Read ``file``, or foremoe.toml of the working directory if that is there.

        Raises InvalidInputError when the file cannot be read or is not TOML with sections.
        """
        if file is None and Path(FILE_NAME).is_file():
            file = Path(FILE_NAME)
        values: dict[tuple[str, str], tuple[Any, str]] = {}
        for section, table in {} if file is None else _read(file):
            values |= {(section, key): (raw, f"file {file}") for key, raw in table.items()}
        for name, text in environment.items():
            section, found, key = name.removeprefix(PREFIX).lower().partition("__")
            if name.startswith(PREFIX) and found:
                values[section, key] = (text, f"env {name}")
        return cls(values)

    def check(self, sections: Collection[str], keys: Callable[[str], Collection[str]]) -> None:
        """Raises InvalidInputError for a section or key that no command has.

        keys: the keys of a section; called for the sections that are used only.
        """
        for (section, key), (_, source) in self.values.items():
            if section not in sections:
                raise InvalidInputError(
                    f"{source}: there is no section [{section}]{suggestion(section, sections)}"
                )
            if key not in (known := keys(section)):
                raise InvalidInputError(
                    f"{source}: [{section}] has no key {key}{suggestion(key, known)}"
                )

    def parse(
        self, command: str, parser: argparse.ArgumentParser, arguments: list[str]
    ) -> tuple[argparse.Namespace, list[Setting]]:
        """Parse a command's arguments and complete them; also says where each option comes from.

        Raises what the parser raises, and InvalidInputError for a value of the file or the
        environment that no flag could have.
        """
        options = options_of(command, parser)
        settings = self.settings(options)
        for (name, option), setting in zip(options.items(), settings, strict=True):
            option.action.required = option.action.required and setting.source == "unset"
            parser.set_defaults(**{name: None})  # so that None says: no flag
        namespace = parser.parse_args(arguments)
        for index, name in enumerate(options):
            flag = getattr(namespace, name)
            if flag is not None:
                settings[index] = replace(settings[index], value=flag, source="flag")
            setattr(namespace, name, settings[index].value)
        return namespace, settings

    def settings(self, options: Mapping[str, Option]) -> list[Setting]:
        """The options' values without any flag, in the same order."""
        return [self._setting(option) for option in options.values()]

    def _setting(self, option: Option) -> Setting:
        found = self.values.get((option.section, option.key))
        if found is None:
            source = "unset" if option.action.required else "default"
            return Setting(option.section, option.key, _default(option.action), source)
        raw, source = found
        try:
            value = _converted(option.action, raw)
        except (ValueError, TypeError, argparse.ArgumentTypeError, InvalidInputError) as error:
            raise InvalidInputError(f"{source}: [{option.section}] {option.key}: {error}") from None
        return Setting(option.section, option.key, value, source)


def suggestion(word: str, words: Collection[str]) -> str:
    """``; did you mean ...?`` for a misspelt word, or what there is to choose from."""
    close = difflib.get_close_matches(word, words, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(sorted(words))}"


def _read(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        raise InvalidInputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{file}: is not TOML: {error}") from None
    for section, table in content.items():
        if not isinstance(table, dict):
            raise InvalidInputError(
                f"file {file}: {section} belongs into the section of its command, [serve] say"
            )
        yield section, table


def _default(action: argparse.Action) -> Any:
    default, kind = action.default, action.type
    return _typed(kind, default) if isinstance(default, str) and kind is not None else default


def _converted(action: argparse.Action, raw: Any) -> Any:
    if action.nargs == 0:
        return _switched(action, raw)
    if action.nargs in (None, "?"):
        return _one(action, raw)
    items = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(items, list):
        raise TypeError(f"expected a list, got {raw!r}")
    if isinstance(action.nargs, int) and len(items) != action.nargs:
        raise ValueError(f"expected {action.nargs} values, got {raw!r}")
    return [_one(action, item) for item in items]


def _switched(action: argparse.Action, raw: Any) -> Any:
    on = _WORDS.get(raw.lower()) if isinstance(raw, str) else raw
    if not isinstance(on, bool):
        raise TypeError(f"expected true or false, got {raw!r}")
    if isinstance(action, argparse.BooleanOptionalAction):
        return on
    return action.const if on else not action.const


def _one(action: argparse.Action, raw: Any) -> Any:
    if isinstance(raw, bool | list | dict):
        raise TypeError(f"expected one value, got {raw!r}")
    text = str(raw)
    value = text if action.type is None else _typed(action.type, text)
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"{text!r} is none of {', '.join(map(str, action.choices))}")
    return value


def _typed(kind: Any, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is no {getattr(kind, '__name__', 'value')}") from None
