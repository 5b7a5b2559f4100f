"""Flag before environment before file before default, each option defined once."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from foremoe.cli import CONFIGURED, command_parser, main, section_keys
from foremoe.configuration import SHARED, Configuration
from foremoe.errors import InvalidInputError
from tests.runtime.daemon_process import DaemonProcess, run_foremoe
from tests.runtime.steps import attached

FILE = """
[daemon]
address = "/run/user/7/foremoe.sock"

[serve]
max_steps = 2
planning_workers = 3
memory_limit = "1M"
target = 1.5
policy = "resident"

[top]
once = true
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and an environment without configuration."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("FOREMOE_"):
            monkeypatch.delenv(name)
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["config", "show", "--json", *arguments]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert (captured.err.count("\n"), captured.out) == (1, "")
    return captured.err


def test_each_level_beats_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "foremoe.toml").write_text(FILE)
    monkeypatch.setenv("FOREMOE_SERVE__MAX_STEPS", "5")
    monkeypatch.setenv("FOREMOE_SERVE__PLANNING_WORKERS", "6")
    serve = shown(capsys, "serve", "--max-steps", "9")["serve"]
    assert serve["max_steps"] == {"value": 9, "source": "flag"}
    assert serve["planning_workers"] == {
        "value": 6,
        "source": "env FOREMOE_SERVE__PLANNING_WORKERS",
    }
    assert serve["target"] == {"value": 1.5, "source": "file foremoe.toml"}
    assert serve["memory_limit"] == {"value": 1 << 20, "source": "file foremoe.toml"}
    assert serve["drain_seconds"] == {"value": 5.0, "source": "default"}
    assert serve["metrics_port"] == {"value": None, "source": "default"}


def test_a_flag_equal_to_the_default_still_beats_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "foremoe.toml").write_text(FILE)
    serve = shown(capsys, "serve", "--policy", "foremoe")["serve"]
    assert serve["policy"] == {"value": "foremoe", "source": "flag"}


def test_the_address_is_one_option_of_all_commands(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "foremoe.toml").write_text(FILE)
    assert shown(capsys)["daemon"]["address"]["value"] == "/run/user/7/foremoe.sock"
    for command in ("serve", "status", "top"):
        assert shown(capsys, command)["daemon"]["address"]["source"] == "file foremoe.toml"
        given = shown(capsys, command, "--socket", "relative")["daemon"]["address"]
        assert given == {"value": "unix:relative", "source": "flag"}
    assert "unix:/run/user/7/foremoe.sock" in refusal(capsys, "status")


def test_another_file_can_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "foremoe.toml").write_text(FILE)
    other = folder / "other.toml"
    other.write_text("[serve]\nmax_steps = 7\n")
    assert main(["--config", str(other), "config", "show", "--json", "serve"]) == 0
    serve = json.loads(capsys.readouterr().out)["serve"]
    assert serve["max_steps"] == {"value": 7, "source": f"file {other}"}
    assert serve["target"]["source"] == "default"
    assert "cannot be read" in refusal(capsys, "--config", str(folder), "status")


def test_what_is_shown_is_a_file_that_says_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "foremoe.toml").write_text(FILE)
    before = shown(capsys)
    assert main(["config", "show"]) == 0
    text = capsys.readouterr().out
    assert "max_steps = 2 " in text
    assert "# file foremoe.toml" in text
    (folder / "foremoe.toml").write_text(text)
    after = shown(capsys)
    assert {s: {k: v["value"] for k, v in keys.items()} for s, keys in after.items()} == {
        s: {k: v["value"] for k, v in keys.items()} for s, keys in before.items()
    }
    written = {(s, key) for s, keys in tomllib.loads(text).items() for key in keys}
    for section, keys in after.items():
        for key, setting in keys.items():
            in_file = setting["source"] == "file foremoe.toml"
            assert in_file == ((section, key) in written), (section, key)


def test_all_commands_and_only_they_have_sections(capsys: pytest.CaptureFixture[str]) -> None:
    content = shown(capsys)
    assert content.keys() == {*CONFIGURED, *SHARED.values()}
    for section, keys in content.items():
        assert keys.keys() == section_keys(section)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[serve]\nmax_step = 1", "[serve] has no key max_step; did you mean max_steps?"),
        ("[srve]\nmax_steps = 1", "there is no section [srve]; did you mean serve?"),
        ("[plan]\nsockets = 1", "[plan] has no key sockets; there are "),
        ("[serve]\naddress = 'x'", "[serve] has no key address"),
        ("[daemon]\nmax_steps = 1", "[daemon] has no key max_steps"),
        ("max_steps = 1", "max_steps belongs into the section of its command"),
        ("[serve]\nmax_steps = 'many'", "[serve] max_steps: 'many' is no int"),
        ("[serve]\nmax_steps = [1]", "[serve] max_steps: expected one value"),
        ("[serve]\nmax_steps = true", "[serve] max_steps: expected one value"),
        ("[serve]\npolicy = 'best'", "[serve] policy: 'best' is none of"),
        ("[serve]\nmemory_limit = 'much'", "[serve] memory_limit: 'much' is no size"),
        ("[plan]\nattention = 3", "[plan] attention: expected a list"),
        ("[plan]\nattention = [3]", "[plan] attention: expected 2 values"),
        ("[status]\njson = 'perhaps'", "[status] json: expected true or false"),
        ("[serve\n", "is not TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line(
    content: str, text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "foremoe.toml").write_text(content)
    command = next((name for name in ("plan", "status") if f"[{name}]" in content), "serve")
    error = refusal(capsys, command)
    assert text in error
    assert "foremoe.toml" in error
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])  # to learn what would be right


def test_what_is_wrong_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREMOE_SERVE__MAX_STEPS", "many")
    assert "env FOREMOE_SERVE__MAX_STEPS: [serve] max_steps: 'many'" in refusal(capsys, "serve")
    monkeypatch.delenv("FOREMOE_SERVE__MAX_STEPS")
    monkeypatch.setenv("FOREMOE_SERVE__MAXSTEPS", "4")
    assert "did you mean max_steps?" in refusal(capsys, "status")


def test_a_required_option_may_come_from_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, "plan")["plan"]["ranks"] == {"value": None, "source": "unset"}
    assert "the following arguments are required: --ranks" in refusal(capsys, "plan", "trace.npz")
    (folder / "foremoe.toml").write_text("[plan]\nranks = 4\n")
    assert "trace.npz" in refusal(capsys, "plan", "trace.npz")  # got as far as reading it
    assert shown(capsys, "plan")["plan"]["ranks"] == {"value": 4, "source": "file foremoe.toml"}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("No", False)])
def test_switches_are_words_in_the_environment(text: str, value: bool) -> None:
    configuration = Configuration.load(None, {"FOREMOE_TOP__ONCE": text})
    options, _ = configuration.parse("top", command_parser("top"), [])
    assert options.once is value


def test_options_with_several_values_are_lists(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "foremoe.toml").write_text("[plan]\nattention = [1, 0.5]\n")
    assert shown(capsys, "plan")["plan"]["attention"]["value"] == [1.0, 0.5]
    monkeypatch.setenv("FOREMOE_PLAN__ATTENTION", "2,0.25")
    assert shown(capsys, "plan")["plan"]["attention"]["value"] == [2.0, 0.25]


def test_variables_of_others_are_left_alone() -> None:
    assert Configuration.load(None, {"FOREMOE_TRACES": "x", "OTHER_SERVE__X": "y"}).values == {}
    configuration = Configuration.load(None, {"FOREMOE_NOTHING__X": "1"})
    with pytest.raises(InvalidInputError, match="no section"):
        configuration.check(CONFIGURED, section_keys)


def test_a_daemon_is_told_all_by_its_file(folder: Path) -> None:
    folder.chmod(0o700)
    (folder / "foremoe.toml").write_text(
        '[serve]\npolicy = "resident"\nmetrics_port = 0\nlog_format = "json"\nmemory_limit = "64M"'
    )
    with DaemonProcess(folder) as daemon, attached(daemon, "ep0") as group:
        group.run(1)
        assert group.controller.status().stored_bytes_limit == 64 << 20
        lines = [json.loads(line)["message"] for line in daemon.log.read_text().splitlines()]
    assert any(line.startswith("metrics at http://127.0.0.1:") for line in lines)
    assert any("policy resident" in line for line in lines)
    assert run_foremoe("status", "--socket", daemon.address).returncode == 2
