"""The repository's folders, the installed packages and the type checker's view are the same."""

import importlib.util
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import foremoe
import foremoe.cli
import foremoe.planner
import foremoe.runtime
import foremoe.transfer

ROOT = Path(__file__).resolve().parents[2]
LINKS = ROOT / ".typecheck" / "foremoe"
MAPPED = ("planner", "runtime", "transfer")


@pytest.fixture(scope="module")
def setuptools() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    found: dict[str, Any] = settings["setuptools"]
    return found


def test_every_package_folder_is_declared(setuptools: dict[str, Any]) -> None:
    found = {
        ".".join((name, *init.parent.relative_to(ROOT / top).parts))
        for name, top in setuptools["package-dir"].items()
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert found == set(setuptools["packages"])
    assert len(setuptools["packages"]) == len(found)


def test_every_folder_with_code_is_a_package(setuptools: dict[str, Any]) -> None:
    for top in setuptools["package-dir"].values():
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_type_checkers_link_tree_is_complete() -> None:
    own = {entry.name for entry in (ROOT / "foremoe").iterdir() if entry.name != "__pycache__"}
    links = {entry.name: entry for entry in LINKS.iterdir()}
    assert links.keys() == own | set(MAPPED)
    for name, link in links.items():
        target = ROOT / name if name in MAPPED else ROOT / "foremoe" / name
        assert link.is_symlink(), link
        assert link.resolve() == target.resolve()


@pytest.mark.parametrize("name", MAPPED)
def test_folder_does_not_import_under_its_own_name(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"ImportError: import foremoe.{name}, not {name}" in done.stderr


@pytest.mark.parametrize("name", [*MAPPED, "proto"])
def test_nothing_leaks_to_the_top_level(name: str, tmp_path: Path) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", MAPPED)
def test_folder_is_what_the_package_imports(name: str) -> None:
    spec = importlib.util.find_spec(f"foremoe.{name}")
    assert spec is not None
    assert spec.origin is not None
    if Path(foremoe.__file__).parent == ROOT / "foremoe":  # an editable install
        assert Path(spec.origin) == ROOT / name / "__init__.py"


def test_console_command_is_the_cli() -> None:
    (entry,) = [entry for entry in entry_points(group="console_scripts") if entry.name == "foremoe"]
    assert entry.load() is foremoe.cli.main
    command = Path(sys.executable).with_name("foremoe")
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"foremoe {foremoe.__version__}\n")
    done = subprocess.run(
        [sys.executable, "-m", "foremoe", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for name in foremoe.cli.COMMANDS:
        assert name in done.stdout
        assert importlib.util.find_spec(f"foremoe.commands.{name}") is not None


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == foremoe.__version__


def test_daemon_and_controller_do_not_load_torch() -> None:
    code = (
        "import sys, foremoe.commands.serve, foremoe.commands.status, foremoe.client;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd="/").returncode == 0
