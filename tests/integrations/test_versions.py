"""A framework that is missing, of another version or broken gives one clear line."""

import importlib.metadata

import pytest

from foremoe.errors import InvalidInputError
from foremoe.integrations.versions import supported


@pytest.mark.parametrize("found", ["0.3.0", "0.3.7.dev20261101+cpu"])
def test_a_supported_version_passes(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr("foremoe.integrations.versions.version", lambda _: found)
    with supported("torchtitan", at_least="0.3", below="0.4", extra="torchtitan"):
        pass


@pytest.mark.parametrize("found", ["0.2.9", "0.10.0", "0.4.0rc1"])
def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr("foremoe.integrations.versions.version", lambda _: found)
    with (
        pytest.raises(InvalidInputError, match=rf"torchtitan {found} .*'foremoe\[torchtitan\]'"),
        supported("torchtitan", at_least="0.3", below="0.4", extra="torchtitan"),
    ):
        pass


def test_a_missing_framework_is_named() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("no-such-framework")
    with (
        pytest.raises(InvalidInputError, match="no-such-framework is not installed; pip install"),
        supported("no-such-framework", at_least="1", below="2", extra="it"),
    ):
        pass


def test_what_cannot_be_imported_is_named() -> None:
    with (
        pytest.raises(InvalidInputError, match=r"pytest .* \(No module named 'no_triton'\)"),
        supported("pytest", at_least="1", below="1000", extra="test"),
    ):
        import no_triton  # noqa: F401
