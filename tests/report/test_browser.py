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

from tests.report.pages import Page
from tests.report.planned import CHARTS, Planned

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1280, 5000  # a laptop's window, as tall as the page
ACCENT = {"light": (44, 107, 209), "dark": (92, 149, 242)}
RED = {"light": (211, 35, 47), "dark": (255, 90, 95)}
PAPER = {"light": (254, 254, 254), "dark": (20, 23, 27)}
PREFERRED = {"dark": 0, "light": 1}  # Chromium's numbers
PROBE = """<script>
const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
const found = {width: document.documentElement.scrollWidth, figures: {}};
for (const s of document.querySelectorAll("section")) {
  const texts = [...s.querySelectorAll("svg text")];
  found.figures[s.id] = {
    svg: box(s.querySelector("svg")),
    texts: texts.map(t => [t.textContent, ...box(t)]),
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
def layout(browser: str, planned: Planned) -> dict[str, Any]:
    """Boxes of figures and texts, in pixels: x, y, width, height."""
    probe = planned.html.with_name("probe.html")
    allowed = planned.html.read_text().replace(
        "style-src", "script-src 'unsafe-inline'; style-src", 1
    )
    probe.write_text(allowed.replace("</body>", PROBE))
    probe.with_name("dom.html").write_text(run(browser, probe, "--dump-dom"))
    found = Page(probe.with_name("dom.html")).root.find(".//body")
    assert found is not None
    boxes: dict[str, Any] = json.loads(found.get("data-found", ""))
    return boxes


def test_figures_fill_the_page_and_nothing_sticks_out(layout: dict[str, Any]) -> None:
    assert layout["width"] <= WIDTH
    assert list(layout["figures"]) == CHARTS
    bottom = 0.0
    for name, figure in layout["figures"].items():
        left, top, width, height = figure["svg"]
        assert width > 900, name
        assert height > 200, name
        assert top > bottom, f"{name} overlaps the figure above"
        bottom = top + height
        assert len(figure["texts"]) > 5, name
        for text, x, y, wide, high in figure["texts"]:
            assert high > 10, f"{name}: {text!r} is too small to read"
            assert left - 1 <= x, f"{name}: {text!r} is cut off"
            assert x + wide <= left + width + 1, f"{name}: {text!r} is cut off"
            assert top - 1 <= y
            assert y + high <= bottom + 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_is_painted_in_light_and_dark(
    browser: str, planned: Planned, layout: dict[str, Any], theme: str
) -> None:
    shot = planned.html.with_name(f"{theme}.png")
    scheme = f"--blink-settings=preferredColorScheme={PREFERRED[theme]}"
    run(browser, planned.html, scheme, f"--screenshot={shot}")
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == WIDTH
    assert near(pixels[2, 2], PAPER[theme])
    for name, figure in layout["figures"].items():
        x, y, width, height = map(int, figure["svg"])
        painted = pixels[y : y + height, x : x + width]
        assert near(painted, PAPER[theme]).mean() > 0.03, f"{name}: the background is another's"
        if name != "heatmap":  # its accent is in an image, in the colours of light
            assert near(painted, ACCENT[theme]).sum() > 100, f"{name}: no accent"
        if name == "timeline-update":
            assert near(painted, RED[theme]).sum() > 100, "exposed time is not red"


def near(pixels: NDArray[Any], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    close: NDArray[np.bool_] = (np.abs(pixels - np.array(colour)) <= 6).all(axis=-1)
    return close
