"""Which releases of a framework an adapter was made for."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from foremoe.errors import InvalidInputError


@contextmanager
def supported(package: str, at_least: str, below: str, extra: str) -> Iterator[None]:
    """An adapter's imports of ``package`` belong inside.

    extra: of ForeMoE, that installs it. Raises InvalidInputError, one line that says what to
    install, when the package is missing, has another version or cannot be imported.
    """
    cure = f"pip install 'foremoe[{extra}]'"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise InvalidInputError(f"foremoe: {package} is not installed; {cure}") from None
    if not _numbers(at_least) <= _numbers(found) < _numbers(below):
        raise InvalidInputError(
            f"foremoe: {package} {found} is not supported, "
            f"it needs at least {at_least} and less than {below}; {cure}"
        )
    try:
        yield
    except ImportError as error:
        raise InvalidInputError(
            f"foremoe: {package} {found} cannot be imported ({error}); install what it lacks"
        ) from error


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])
