"""One HTML file with everything in it, and the figures as files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from foremoe import __version__
from foremoe.errors import InvalidInputError
from foremoe.progress import working
from foremoe.report.chart import Cell, Chapter, Chart, Numbers
from foremoe.report.style import styled

MAX_CELLS = 3000  # of a table; a page is for reading
MAX_DRAWN = 1_200_000  # bytes of all figures


@dataclass(frozen=True, slots=True)
class _Section:
    """A chart as the template takes it."""

    chart: Chart
    svg: Markup
    rows: Sequence[Sequence[Cell]]


def write_report(
    path: Path,
    folder: Path | None,
    make_chapters: Callable[[], Sequence[Chapter]],
    record: Path | None = None,
) -> None:
    """Draw the chapters and write the page; InvalidInputError.

    folder: for every figure as a file. record: for all numbers as JSON.
    """
    with working("drawing the report"), styled():
        chapters = make_chapters()
        _name_apart(chapters)
        _write_page(path, chapters)
        if folder is not None:
            _write_figures(folder, chapters)
    if record is not None:
        _write(record, json.dumps([_record(chapter) for chapter in chapters], indent=2) + "\n")


def _name_apart(chapters: Sequence[Chapter]) -> None:
    """No two charts have the same slug: later ones get a number."""
    taken: set[str] = set()
    for chart in (chart for chapter in chapters for chart in chapter.charts):
        names = (f"{chart.slug}-{number}" for number in count(2))
        chart.slug = next(name for name in chain([chart.slug], names) if name not in taken)
        taken.add(chart.slug)


def _write_page(path: Path, chapters: Sequence[Chapter]) -> None:
    environment = Environment(
        loader=PackageLoader("foremoe.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    sections = _drawn(chapters)
    content = environment.get_template("page.html").render(
        version=__version__, chapters=list(zip(chapters, sections, strict=True))
    )
    _write(path, content)


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error


def _record(chapter: Chapter) -> dict[str, Any]:
    return {
        "title": chapter.title,
        "source": chapter.source,
        "facts": {fact.key: fact.value for fact in chapter.facts},
        "charts": {
            chart.slug: {
                "finding": chart.finding,
                "columns": list(chart.numbers.columns),
                "rows": [list(row) for row in chart.numbers.rows],
            }
            for chart in chapter.charts
        },
        "missing": list(chapter.missing),
    }


def _write_figures(folder: Path, chapters: Sequence[Chapter]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{folder}: cannot be made ({error.strerror})") from error
    for chapter in chapters:
        for chart in chapter.charts:
            chart.save(folder)


def _drawn(chapters: Sequence[Chapter]) -> list[list[_Section]]:
    """Figures that are large in themselves get simpler, the largest first, until all fit."""
    sections = [[_section(chart) for chart in chapter.charts] for chapter in chapters]
    places = [
        (len(s.svg), row, at) for row, line in enumerate(sections) for at, s in enumerate(line)
    ]
    total = sum(size for size, _, _ in places)
    for size, row, at in sorted(places, reverse=True):
        if total <= MAX_DRAWN:
            break
        sections[row][at].chart.simplify()
        simpler = _section(sections[row][at].chart)
        if len(simpler.svg) < size:
            sections[row][at] = simpler
            total += len(simpler.svg) - size
    return sections


def _section(chart: Chart) -> _Section:
    # Markup: matplotlib has escaped its texts, and the alt text went through an XML writer.
    return _Section(chart, Markup(chart.inline()), _shown(chart.numbers))


def _shown(numbers: Numbers) -> Sequence[Sequence[Cell]]:
    return numbers.rows[: MAX_CELLS // len(numbers.columns)]


def _figure(value: Cell) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"
