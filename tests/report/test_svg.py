"""Matplotlib's SVG as part of a page."""

import re

from foremoe.report.svg import inline_svg

# As matplotlib writes them: an image's id is a hash of what it shows.
DRAWING = b"""<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt">
<g id="figure_1">
<g id="axes_1"><image id="image0a0da5fca1" width="3" height="3"/></g>
<g id="axes_2"><image id="image0a0da5fca1" width="3" height="3"/></g>
</g>
</svg>"""


def test_ids_are_the_charts_own_and_unique_also_where_images_are_equal() -> None:
    page = inline_svg(DRAWING, "chart", "two equal images")
    assert page.count("<image") == 2
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert sorted(ids) == ["chart-axes_1", "chart-axes_2", "chart-figure", "chart-figure_1"]
