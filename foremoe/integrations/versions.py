"""Which releases of a framework an adapter was made for."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from foremoe.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Releases:
    """``at_least`` and all after it, ``below`` not; ``extra`` of ForeMoE installs one."""

    at_least: str
    below: str
    extra: str


SUPPORTED = {
    "megatron-core": Releases("0.16.1", "0.17", "megatron"),
    "torchtitan": Releases("0.3", "0.4", "torchtitan"),
    "transformers": Releases("5.23", "6", "transformers"),
}


@contextmanager
def supported(package: str) -> Iterator[None]:
    """An adapter's imports of ``package`` belong inside.

    Raises as ``check_version`` does, and InvalidInputError when it cannot be imported.
    """
    found = check_version(package)
    try:
        yield
    except ImportError as error:
        raise InvalidInputError(
            f"foremoe: {package} {found} cannot be imported ({error}); install what it lacks"
        ) from error


def check_version(package: str) -> str:
    """The installed version of ``package``.

    Raises InvalidInputError, one line that says what to install, for another one or none.
    """
    releases = SUPPORTED[package]
    cure = f"pip install 'foremoe[{releases.extra}]'"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise InvalidInputError(f"foremoe: {package} is not installed; {cure}") from None
    if not _numbers(releases.at_least) <= _numbers(found) < _numbers(releases.below):
        raise InvalidInputError(
            f"foremoe: {package} {found} is not supported, it needs at least {releases.at_least} "
            f"and less than {releases.below}; {cure}"
        )
    return found


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])
