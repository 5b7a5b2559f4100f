"""A chart: what it shows in one sentence, the drawing, and the numbers behind it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from foremoe.errors import InvalidInputError
from foremoe.report.style import INK, PAPER, WIDTH
from foremoe.report.svg import inline_svg

DOTS_PER_INCH = 160  # of files
PAGE_DOTS_PER_INCH = 100  # of what is an image on the page
SIMPLE_DOTS_PER_INCH = 72  # of what is one because it would be too large
_UNDER_TEXTS = 2.2  # matplotlib draws lines at 2, ticks and texts above
Cell = str | int | float


@dataclass(frozen=True, slots=True)
class Numbers:
    """The table under a chart; every row has a cell for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the large numbers at the head of a chapter. key: stable, for scripts and tests."""

    key: str
    label: str
    value: float
    text: str


@dataclass(slots=True, eq=False)
class Chart:
    """slug: its id on the page and its file's name. finding: what to see, one sentence.

    caption: how to read it. alt: what a person hears who cannot see it.
    """

    slug: str
    finding: str
    caption: str
    alt: str
    drawing: Figure
    numbers: Numbers
    page_dots_per_inch: int = PAGE_DOTS_PER_INCH

    def inline(self) -> str:
        """The drawing as an ``<svg>`` element of the page."""
        return inline_svg(self._saved("svg", self.page_dots_per_inch), self.slug, self.alt)

    def simplify(self) -> None:
        """From now on ``inline`` draws one image under the texts, in the colours of light."""
        self.page_dots_per_inch = SIMPLE_DOTS_PER_INCH
        for axes in self.drawing.axes:
            axes.set_rasterization_zorder(_UNDER_TEXTS)

    def save(self, folder: Path) -> None:
        """Write ``slug.png`` and ``slug.svg`` with the finding as title; InvalidInputError."""
        self.drawing.suptitle(
            self.finding, x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold", wrap=True
        )
        self.drawing.draw_without_rendering()
        self.drawing.set_layout_engine("none")  # laid out once for both
        for kind in ("png", "svg"):
            path = folder / f"{self.slug}.{kind}"
            try:
                path.write_bytes(self._saved(kind, DOTS_PER_INCH))
            except OSError as error:
                raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error

    def _saved(self, kind: str, dots_per_inch: int) -> bytes:
        content = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        self.drawing.savefig(content, format=kind, dpi=dots_per_inch, metadata=metadata)
        return content.getvalue()


@dataclass(frozen=True, slots=True)
class Chapter:
    """One run: where it is from, its facts and charts, and what could not be drawn and why."""

    title: str
    source: str
    facts: Sequence[Fact]
    charts: Sequence[Chart]
    missing: Sequence[str] = ()


def new_drawing(height: float) -> Figure:
    """A figure as wide as the page; ``height`` in inches."""
    return Figure(figsize=(WIDTH, height), facecolor=PAPER)
