"""What all commands have in common: help, examples, completion, errors in one line, exit codes."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import shtab

from foremoe import cli
from foremoe.cli import COMMANDS, command_module, command_parser, main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_right(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr().out
    example = command_module(command).EXAMPLE
    assert shown.endswith(f"example:\n  {example}\n")
    words = shlex.split(example.partition(" > ")[0])
    assert words[:2] == ["foremoe", command]
    command_parser(command).parse_args(words[2:])


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    for command, summary in COMMANDS.items():
        assert any(line.split() == [command, *summary.split()] for line in shown.splitlines())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "foremoe: needs a command; see foremoe --help"),
        (["srve"], "foremoe: there is no command srve; did you mean serve?"),
        (["serve", "--max-stepz", "4"], "arguments: --max-stepz 4; did you mean --max-steps?"),
        (["serve", "--max-steps"], "foremoe serve: argument --max-steps: expected one argument"),
        (["serve", "--socket", "a", "--listen", "b"], "not allowed with argument --socket"),
        (["config", "show", "srve"], "srve is no command with options; did you mean serve?"),
        (["config", "show", "serve", "--max-steps", "x"], "invalid int value"),
        (["completion", "dosh"], "invalid choice: 'dosh'; there are bash, fish, powershell,"),
        (["plan", "t.npz", "--ranks", "8", "--policy", "foremo"], "; did you mean foremoe?; see"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (captured.err.count("\n"), text in captured.err) == (1, True), captured.err


def test_help_of_config_show_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: foremoe config show")


def test_interrupted_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert main(["status"]) == 130
    assert capsys.readouterr().err == "foremoe status: interrupted\n"


def test_a_reader_that_leaves_is_141_and_silent() -> None:
    program = "import sys; from foremoe.cli import main; sys.exit(main(['completion', 'bash']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), error) == (141, b"")


@pytest.mark.parametrize("shell", shtab.SUPPORTED_SHELLS)
def test_completion_knows_every_command_and_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "metrics-port", "planning-workers"):
        assert word in script


def test_completion_works_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "foremoe.bash"
    script.write_text(capsys.readouterr().out)
    asked = f"""
        source {script}
        complete_line() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            $(complete -p foremoe | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo "${{COMPREPLY[*]}}"; }}
        complete_line foremoe sta
        complete_line foremoe serve --metrics-p
        complete_line foremoe serve --policy res
    """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=30)
    assert done.stdout.split("\n")[:3] == ["status", "--metrics-port", "resident"], done
