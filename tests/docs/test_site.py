"""The documentation site: pages are reached, links lead somewhere, references are made."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site as plain text, each warning an error; text is the quickest to write."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "text"]
    done = subprocess.run([*command, DOCS, folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    assert {path.relative_to(site).with_suffix("") for path in site.rglob("*.txt")} == pages


def test_services_and_classes_are_described_by_their_own_comments(site: Path) -> None:
    services = (site / "reference" / "rpc.txt").read_text()
    for name in ("UploadForesight", "SubmitSchedule", "StreamPlans", "GetStatus"):
        assert name in services
    assert "Describes a rank and its EP group." in services
    python = (site / "reference" / "python.txt").read_text()
    for name in ("ControllerClient", "RankSession", "micro_step", "ConflictError", "AttachOptions"):
        assert name in python
    assert "The request contradicts what was accepted before" in python
