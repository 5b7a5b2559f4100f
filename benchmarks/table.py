"""Tables in Markdown, and aims marked from what was measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def rows(header: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown and an empty line."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    return [*lines, ""]


@dataclass(frozen=True)
class Aim:
    """A figure that is to be at most ``limit``; ``bound`` is what nothing goes below, if known."""

    name: str
    limit: float
    measured: float
    form: str = "{:.4f}"
    bound: float | None = None

    @property
    def reached(self) -> bool:
        return self.measured <= self.limit


def aims_table(aims: Iterable[Aim]) -> list[str]:
    """Each aim, what was measured, and whether that reaches it."""
    return rows(
        ["aim", "at most", "measured", "", "no plan below"],
        [
            [aim.name, aim.form.format(aim.limit), aim.form.format(aim.measured),
             "reached" if aim.reached else "**missed**",
             "" if aim.bound is None else aim.form.format(aim.bound)]
            for aim in aims
        ],
    )  # fmt: skip
