"""A framework that is missing, of another version or broken gives one clear line."""

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from foremoe.errors import InvalidInputError
from foremoe.integrations import versions
from foremoe.integrations.versions import SUPPORTED, check_version, supported


def install(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(versions, "version", lambda _: found)


@pytest.mark.parametrize("found", ["0.3", "0.3.0", "0.3.7.dev20261101+cpu"])
def test_a_supported_version_passes(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    install(monkeypatch, found)
    assert check_version("torchtitan") == found


@pytest.mark.parametrize("found", ["0.2.9", "0.10.0", "0.4.0rc1"])
def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    install(monkeypatch, found)
    with pytest.raises(InvalidInputError, match=rf"torchtitan {found} .*'foremoe\[torchtitan\]'"):
        check_version("torchtitan")


def test_a_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    with (
        pytest.raises(InvalidInputError, match="megatron-core is not installed; pip install"),
        supported("megatron-core"),
    ):
        pass


def test_what_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "0.3.0")
    with (
        pytest.raises(InvalidInputError, match=r"torchtitan 0.3.0 .*\(No module named 'no_triton'"),
        supported("torchtitan"),
    ):
        import no_triton  # noqa: F401


def test_extras_install_what_is_supported() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for package, releases in SUPPORTED.items():
        lines = map(Requirement, project["optional-dependencies"][releases.extra])
        (wanted,) = (line.specifier for line in lines if line.name == package)
        assert wanted == SpecifierSet(f">={releases.at_least},<{releases.below}")
