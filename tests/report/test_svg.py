"""Matplotlib's SVG as part of a page."""

import io
import re

import numpy as np
from matplotlib.figure import Figure

from foremoe.report.svg import inline_svg


def test_ids_are_unique_also_where_images_are_equal() -> None:
    drawing = Figure(figsize=(4, 2))
    for left in (0.0, 0.5):  # whole pixels, so that both are sampled alike
        axes = drawing.add_axes((left, 0.0, 0.25, 0.5))
        axes.imshow(np.eye(3), interpolation="none", aspect="auto")
    content = io.BytesIO()
    drawing.savefig(content, format="svg")
    written = re.findall(r'id="(image[^"]*)"', content.getvalue().decode())
    assert len(written) == 2
    assert len(set(written)) == 1
    page = inline_svg(content.getvalue(), "chart", "two equal images")
    assert page.count("<image") == 2
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 10
    assert all(one.startswith("chart-") for one in ids)
