"""How every figure looks: one accent, greys, and red for nothing but lost time.

Inline figures name colours by the page's CSS variables, so that they follow light and dark; files
keep the light ones. Heat is the accent at growing opacity, which reads on both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.ticker import MaxNLocator

INK = "#1b2027"
MUTED = "#69717d"
GRID = "#e3e6ea"
FAINT = "#b4bac3"
PAPER = "#fefefe"
ACCENT = "#2c6bd1"
RED = "#d3232f"
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    FAINT: "faint",
    PAPER: "paper",
    ACCENT: "accent",
    RED: "red",
}
WIDTH = 10.0  # inches; 720 units of the SVG
HEAT = LinearSegmentedColormap.from_list("heat", [(*to_rgb(ACCENT), 0.04), (*to_rgb(ACCENT), 1.0)])
ON_HEAT = "#ffffff"  # text on strong heat, in light and dark
_SETTINGS: dict[str, Any] = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names are a user's, and no formulas
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "foremoe",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save figures inside this."""
    with rc_context(_SETTINGS):  # type: ignore[arg-type]  # a Literal of every key there is
        yield


def whole_numbers(axis: Axis) -> None:
    """Ticks of micro-steps, layers and steps."""
    axis.set_major_locator(MaxNLocator(integer=True))


def horizontal_grid(axes: Axes) -> None:
    axes.grid(axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def bare(axes: Axes) -> None:
    """No frame and no tick marks, for heat and lanes."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
