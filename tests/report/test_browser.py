"""The page as a browser lays it out and paints it. Skipped where there is no Chromium."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foremoe.cli import main
from tests.report.pages import Page
from tests.report.planned import CHARTS as PLAN_CHARTS
from tests.report.planned import Planned
from tests.report.told import CHARTS as TOLD_CHARTS
from tests.report.told import FIGURES, Told
from tests.runtime.steps import MICRO_STEPS, RANKS

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1280, 9000  # a laptop's window, as tall as the page
ACCENT = {"light": (44, 107, 209), "dark": (92, 149, 242)}
RED = {"light": (211, 35, 47), "dark": (255, 90, 95)}
PAPER = {"light": (254, 254, 254), "dark": (20, 23, 27)}
PREFERRED = {"dark": 0, "light": 1}  # Chromium's numbers
PROBE = """<script>
const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
const found = {width: document.documentElement.scrollWidth, figures: {}};
for (const s of document.querySelectorAll("section")) {
  const texts = [...s.querySelectorAll("svg text")];
  const named = [...s.querySelectorAll("svg [id]")];
  const marks = e => [...e.querySelectorAll("use, path")].filter(m => !m.closest("defs"));
  found.figures[s.id] = {
    svg: box(s.querySelector("svg")),
    texts: texts.map(t => [t.textContent, ...box(t)]),
    parts: Object.fromEntries(named.map(e => [e.id.slice(s.id.length + 1), box(e)])),
    marks: Object.fromEntries(named.map(e => [e.id.slice(s.id.length + 1), marks(e).map(box)])),
    images: [...s.querySelectorAll("image")].map(box),
  };
}
document.body.innerHTML = "";
document.body.dataset.found = JSON.stringify(found);
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip("no Chromium: install chromium to see the report laid out and painted")
    return found


def run(browser: str, page: Path, *options: str) -> str:
    done = subprocess.run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={page.parent / 'profile'}",
            f"--window-size={WIDTH},{HEIGHT}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def html(planned: Planned, told: Told, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One page of plans and of a daemon's run, so that the browser starts for both at once."""
    page = tmp_path_factory.mktemp("browser") / "report.html"
    runs = [str(told.folder), str(planned.plans_file)]
    assert main(["report", *runs, "--model", "mixtral-8x7b", "--out", str(page)]) == 0
    assert page.stat().st_size < 2_000_000
    return page


@pytest.fixture(scope="module")
def layout(browser: str, html: Path) -> dict[str, Any]:
    """Boxes of figures, texts and named parts, in pixels: x, y, width, height."""
    probe = html.with_name("probe.html")
    allowed = html.read_text().replace("style-src", "script-src 'unsafe-inline'; style-src", 1)
    probe.write_text(allowed.replace("</body>", PROBE))
    probe.with_name("dom.html").write_text(run(browser, probe, "--dump-dom"))
    found = Page(probe.with_name("dom.html")).root.find(".//body")
    assert found is not None
    boxes: dict[str, Any] = json.loads(found.get("data-found", ""))
    return boxes


def test_figures_fill_the_page_and_nothing_sticks_out(layout: dict[str, Any]) -> None:
    assert layout["width"] <= WIDTH
    again = [f"{name}-2" if name in TOLD_CHARTS else name for name in PLAN_CHARTS]
    assert list(layout["figures"]) == [*TOLD_CHARTS, *again]
    bottom = 0.0
    for name, figure in layout["figures"].items():
        left, top, width, height = figure["svg"]
        assert width > 900, name
        assert height > 150, name
        assert top > bottom, f"{name} overlaps the figure above"
        bottom = top + height
        assert len(figure["texts"]) > 5, name
        for text, x, y, wide, high in figure["texts"]:
            assert high > 10, f"{name}: {text!r} is too small to read"
            assert left - 1 <= x, f"{name}: {text!r} is cut off"
            assert x + wide <= left + width + 1, f"{name}: {text!r} is cut off"
            assert top - 1 <= y
            assert y + high <= bottom + 1


def test_a_daemons_figures_have_all_their_elements(layout: dict[str, Any]) -> None:
    figures = {name: layout["figures"][f"{name}-update"] for name in FIGURES}
    dots = [f"replicas-{count}" for count in range(1, RANKS)]
    assert any(figures["heatmap"]["marks"].get(name) for name in dots)
    for heat in (*figures["heatmap"]["images"][:1], *figures["traffic"]["images"]):
        assert heat[2] > 300, "cells of heat"
        assert heat[3] > 60
    for name in ("before", "after"):
        assert len(figures["imbalance"]["marks"][f"band-{name}"]) == MICRO_STEPS
        cells = figures["traffic"]["parts"][f"matrix-{name}"]
        inside = [text for text, *box in figures["traffic"]["texts"] if contains(cells, box)]
        percent = [float(text) for text in inside]
        assert len(percent) == RANKS**2
        assert sum(percent) == pytest.approx(100, abs=0.3)
    assert max(band[3] for band in figures["imbalance"]["marks"]["band-before"]) > 5
    for curve, points in (("foremoe", 8), ("resident", 8), ("own", 1)):
        drawn = [box for box in figures["frontier"]["marks"][curve] if box[3] < 30]
        assert len(drawn) >= points, curve
        assert all(contains(figures["frontier"]["svg"], box) for box in drawn)
    for panel in ("whole", "closer"):
        lanes = figures["timeline"]["parts"]
        exposed, compute = (lanes[f"{panel}-{kind}"] for kind in ("exposed", "compute"))
        assert exposed[2] > 100, "red all along"
        assert compute[1] <= exposed[1] + 1 <= compute[1] + compute[3]
        assert lanes[f"{panel}-host"][3] > 10
    assert {"needed", "ready"} <= figures["planning"]["parts"].keys()


def contains(outer: list[float], inner: list[float]) -> bool:
    """Of boxes: x, y, width, height."""
    return all(
        outer[axis] - 1 <= inner[axis]
        and inner[axis] + inner[axis + 2] <= outer[axis] + outer[axis + 2] + 1
        for axis in (0, 1)
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_is_painted_in_light_and_dark(
    browser: str, html: Path, layout: dict[str, Any], theme: str
) -> None:
    shot = html.with_name(f"{theme}.png")
    scheme = f"--blink-settings=preferredColorScheme={PREFERRED[theme]}"
    run(browser, html, scheme, f"--screenshot={shot}")
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == WIDTH
    assert near(pixels[2, 2], PAPER[theme])
    for name, figure in layout["figures"].items():
        x, y, width, height = map(int, figure["svg"])
        painted = pixels[y : y + height, x : x + width].astype(int)
        assert near(painted, PAPER[theme]).mean() > 0.03, f"{name}: the background is another's"
        if not name.startswith("heatmap"):  # its accent is in an image, in the colours of light
            assert near(painted, ACCENT[theme]).sum() > 100, f"{name}: no accent"
        if name.startswith("timeline"):
            assert near(painted, RED[theme]).sum() > 100, "exposed time is not red"


def near(pixels: NDArray[Any], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    close: NDArray[np.bool_] = (np.abs(pixels - np.array(colour)) <= 6).all(axis=-1)
    return close
