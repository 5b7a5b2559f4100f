"""Numbers out of JSON that somebody else may have written."""

import sys
from pathlib import Path
from typing import Any

from foremoe.errors import InvalidInputError


class Record:
    """A JSON object of a file; asking for what is not there raises InvalidInputError."""

    def __init__(self, path: Path, content: Any, where: str = "") -> None:
        if not isinstance(content, dict):
            raise InvalidInputError(f"{path}: {where or 'the file'} is no JSON object")
        self._path, self._content, self._where = path, content, where

    def number(self, key: str) -> float:
        value = self._get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) <= sys.float_info.max
        ):
            raise InvalidInputError(f"{self._path}: {self._named(key)} is no number")
        return value

    def text(self, key: str) -> str:
        return str(self._get(key))

    def record(self, key: str) -> "Record":
        return Record(self._path, self._get(key), self._named(key))

    def records(self, key: str) -> list["Record"]:
        values = self._get(key)
        if not isinstance(values, list) or not values:
            raise InvalidInputError(f"{self._path}: {self._named(key)} is no list of objects")
        return [
            Record(self._path, value, f"{self._named(key)}[{place}]")
            for place, value in enumerate(values)
        ]

    def _get(self, key: str) -> Any:
        if key not in self._content:
            raise InvalidInputError(f"{self._path}: {self._named(key)} is missing")
        return self._content[key]

    def _named(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key
