"""What is installed is pinned by hash, and what runs in CI by commit."""

import re
import tomllib
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXTRAS = ("megatron", "transformers", "report", "docs", "test", "dev")  # that setup.sh installs
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;]+)(?: ; (.*?))? \\$")
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


class Lock:
    """Versions by name, each with its marker, of a file of hashed requirements."""

    def __init__(self, path: Path) -> None:
        self.pins: defaultdict[str, list[tuple[str, Marker | None]]] = defaultdict(list)
        self.hashes: defaultdict[str, int] = defaultdict(int)
        name = ""
        for line in path.read_text().splitlines():
            if pin := _PIN.match(line):
                name = canonicalize_name(pin[1])
                self.pins[name].append((pin[2], Marker(pin[3]) if pin[3] else None))
            else:
                assert _HASH.match(line), f"{path.name}: {line}"
                self.hashes[f"{name}=={self.pins[name][-1][0]}"] += 1

    def here(self, name: str) -> str | None:
        """The version for this Python and platform, if any."""
        versions = [
            pinned
            for pinned, marker in self.pins.get(canonicalize_name(name), ())
            if marker is None or marker.evaluate()
        ]
        assert len(versions) <= 1, (name, versions)
        return versions[0] if versions else None


@pytest.fixture(scope="module")
def locked() -> Lock:
    return Lock(ROOT / "requirements" / "locked.txt")


def wanted() -> list[Requirement]:
    """What setup.sh asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", ["locked.txt", "base.txt", "audit.txt"])
def test_every_pin_has_hashes(name: str) -> None:
    lock = Lock(ROOT / "requirements" / name)
    pins = {f"{one}=={pinned}" for one, pins in lock.pins.items() for pinned, _ in pins}
    assert pins == lock.hashes.keys()
    assert len(pins) > 20


def test_the_lock_has_all_that_set_up_installs_but_torch(locked: Lock) -> None:
    """After a change of pyproject.toml: scripts/lock.sh."""
    names = {canonicalize_name(one.name) for one in wanted()}
    assert "torch" in names
    for one in wanted():
        if one.name == "torch" or (one.marker is not None and not one.marker.evaluate()):
            continue
        pinned = locked.here(one.name)
        assert pinned is not None, f"{one.name} is not locked; run scripts/lock.sh"
        assert one.specifier.contains(pinned), f"{one} is locked at {pinned}"
    assert not [one for one in locked.pins if one.startswith(("torch", "nvidia", "triton", "cuda"))]


def test_set_up_installs_the_extras_that_are_locked() -> None:
    extras = f"[{','.join(EXTRAS)}]"
    assert extras in (ROOT / "scripts" / "setup.sh").read_text()
    lock = (ROOT / "scripts" / "lock.sh").read_text()
    assert re.findall(r"--extra (\w+)", lock) == list(EXTRAS)


def test_constraints_and_lock_agree(locked: Lock) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name for name, pinned in pins.items() if locked.here(name) != pinned} <= {"torch"}


def test_what_is_installed_is_what_is_locked(locked: Lock) -> None:
    installed: dict[str, tuple[str, str]] = {}
    for name in locked.pins:
        pinned = locked.here(name)
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if pinned is not None and found != pinned:
            installed[name] = (found, pinned)
    assert installed == {}, "run make setup"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_pinned_actions_with_the_least_rights(path: Path) -> None:
    text = path.read_text()
    workflow: dict[str, Any] = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in text
    for line in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
        more = set(job.get("permissions", {}))
        assert not more or path.stem == "release", name
        assert more <= {"id-token", "attestations"}, name
        for step in job["steps"]:
            if "actions/checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            command = step.get("run", "").split()
            if command and command[0].startswith(("scripts/", ".ci/")):
                assert (ROOT / command[0]).stat().st_mode & 0o100


def test_there_are_workflows_for_tests_audits_and_releases() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "release", "supply-chain"]
