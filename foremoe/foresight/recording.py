"""Files of recordings: JSON or JSONL records, npz archives with an array for each sequence."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.npz import read_npz

Advance = Callable[[int], None]  # told how many more bytes of the file have been read


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of ``file``; ``where`` says in messages which one it is."""

    content: dict[str, Any]
    file: Path
    where: str

    @property
    def sequence(self) -> str:
        """The record's ``sequence`` in its file, or where it is."""
        name = self.content.get("sequence")
        return self.where if name is None else f"{self.file}:{name}"

    @property
    def weight_versions(self) -> tuple[str, ...]:
        """The policies that chose, oldest first: of ``weight_versions``, else ``weight_version``.

        The former is a list of versions or of spans, objects with a ``version``.
        """
        spans, one = self.content.get("weight_versions"), self.content.get("weight_version")
        if isinstance(spans, list):
            versions = [span.get("version") if isinstance(span, dict) else span for span in spans]
            return tuple(dict.fromkeys(map(str, versions)))
        return () if one is None else (str(one),)

    def integer(self, name: str) -> int:
        """Raises InvalidInputError unless ``name`` is an integer of at least 0."""
        value = self.content.get(name)
        if type(value) is not int or value < 0:
            raise InvalidInputError(f"{self.where}: {name}: expected an integer, got {value!r}")
        return value

    def optional_integer(self, name: str) -> int | None:
        return None if self.content.get(name) is None else self.integer(name)

    def object(self, name: str) -> "Record":
        """Raises InvalidInputError unless ``name`` is an object."""
        value = self.content.get(name)
        if not isinstance(value, dict):
            raise InvalidInputError(f"{self.where}: {name}: expected an object")
        return Record(value, self.file, f"{self.where}: {name}")

    def optional_object(self, name: str) -> "Record | None":
        return None if self.content.get(name) is None else self.object(name)

    def objects(self, name: str) -> "list[Record]":
        """Raises InvalidInputError unless ``name`` is a list of objects."""
        value = self.content.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise InvalidInputError(f"{self.where}: {name}: expected a list of objects")
        where = f"{self.where}: {name}"
        return [Record(item, self.file, f"{where}[{i}]") for i, item in enumerate(value)]


def read_records(path: Path, advance: Advance) -> Iterator[Record]:
    """The objects of a JSON file (one, or a list of them) or of a JSONL file (one a line).

    Raises InvalidInputError if the file cannot be read or a record is no JSON object.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".json":
                yield from _json_records(path, file.read())
                advance(path.stat().st_size)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _record(_parse(line, f"{path}:{number}"), path, f"{path}:{number}")
                advance(len(line))
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _json_records(path: Path, text: bytes) -> Iterator[Record]:
    content = _parse(text, str(path))
    if not isinstance(content, list):
        yield _record(content, path, str(path))
        return
    for index, item in enumerate(content):
        yield _record(item, path, f"{path}[{index}]")


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: is no JSON ({error})") from None


def _record(content: Any, file: Path, where: str) -> Record:
    if not isinstance(content, dict):
        raise InvalidInputError(f"{where}: expected a JSON object")
    return Record(content, file, where)


def read_arrays(path: Path, advance: Advance) -> Iterator[tuple[str, NDArray[Any]]]:
    """An npz's arrays with their names in the file, each the routing of one sequence.

    Raises InvalidInputError if the file cannot be read or is no npz of plain arrays.
    """
    for name, array in read_npz(path).items():
        yield f"{path}:{name}", array
    advance(path.stat().st_size)
