"""docs/operations.md has what to do in every degraded mode, by the name under which it is seen."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from foremoe.vocabulary import DegradedReason

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
_ROW = re.compile(r"^\| `(.+?)` \|", re.MULTILINE)


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text: str, heading: str) -> list[str]:
    """The first column of a table, by its first heading."""
    rows = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return _ROW.findall(rows)


def degraded_lines() -> Iterator[str]:
    """What log lines that begin with "degraded: " say before their first value."""
    for room in ("foremoe", "planner", "runtime", "transfer"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and str(node.value).startswith("degraded: "):
                    yield re.split(r"%|: (?=%)", str(node.value))[0].rstrip(" :")


def test_every_reason_is_in_the_runbook_and_nothing_else() -> None:
    reasons = {str(reason) for reason in DegradedReason}
    assert set(table(section(RUNBOOK, "Degraded modes"), "reason")) == reasons
    rows = table(section(ARCHITECTURE, "Agreement and degraded modes"), "reason")
    assert set(rows) == reasons - {DegradedReason.OTHER}


def test_every_degraded_line_of_a_log_is_in_the_runbook() -> None:
    modes = section(RUNBOOK, "Degraded modes")
    said = set(degraded_lines())
    assert len(said) >= 5
    assert {line for line in said if f"`{line}" not in modes} == set()
