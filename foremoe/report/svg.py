"""Matplotlib's SVG as an element of a page: ids of its own, the page's colours and font."""

import re
from xml.etree import ElementTree

from foremoe.report.style import VARIABLES

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"'DejaVu Sans'(, [^;]*)?")
_LONG = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is finer than any screen
_NAMESPACES = re.compile(r' xmlns(:\w+)?="[^"]*"')


def inline_svg(content: bytes, prefix: str, alt: str) -> str:
    """``content`` as written by matplotlib -> ``<svg>`` for HTML; ids start with ``prefix``."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(content)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        if element.tag == f"{{{_SVG}}}image" and element.get("id", "").startswith("image"):
            element.attrib.pop("id")  # it is a hash, and images may be equal
        for name, value in list(element.attrib.items()):
            element.set(name, _adapted(name, value, prefix))
    root.attrib.pop("width")
    root.attrib.pop("height")
    root.set("id", f"{prefix}-figure")
    root.set("role", "img")
    root.set("aria-label", alt)
    text = ElementTree.tostring(root, encoding="unicode")
    head, _, rest = text.partition(">")
    return _NAMESPACES.sub("", head) + ">" + rest  # in HTML the parser knows both namespaces


def _adapted(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name.endswith("}href") and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if name in ("d", "x", "y"):
        return _LONG.sub(r"\1", value)
    value = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
    if name == "style":
        for colour, variable in VARIABLES.items():
            value = value.replace(colour, f"var(--{variable})")
        value = _FONT.sub("var(--font)", value)
    return value
