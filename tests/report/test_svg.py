"""Matplotlib's SVG as part of a page."""

import io
import re

import numpy as np
from matplotlib.figure import Figure

from foremoe.report.svg import inline_svg


def test_ids_are_unique_also_where_images_are_equal() -> None:
    drawing = Figure()
    for axes in drawing.subplots(1, 2):
        axes.imshow(np.eye(3), interpolation="none")
    content = io.BytesIO()
    drawing.savefig(content, format="svg")
    page = inline_svg(content.getvalue(), "chart", "two equal images")
    assert page.count("<image") == 2
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 10
    assert all(one.startswith("chart-") for one in ids)
