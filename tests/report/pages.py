"""A report's page as a tree, read by the standard library's HTML parser."""

from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

VOID = {"meta", "br", "hr", "img", "link", "input"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("page")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = SubElement(self.open[-1], tag, {name: value or "" for name, value in attrs})
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        SubElement(self.open[-1], tag, {name: value or "" for name, value in attrs})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.open[-1].text = (self.open[-1].text or "") + data


class Page:
    """Elements of a written page."""

    def __init__(self, path: Path) -> None:
        self.source = path.read_text(encoding="utf-8")
        reader = _Reader()
        reader.feed(self.source)
        reader.close()
        assert reader.open == [reader.root], "an element is not closed"
        self.root = reader.root

    def facts(self) -> dict[str, float]:
        """The large numbers by key."""
        return {e.get("class", ""): float(e.get("value", "")) for e in self.root.iter("data")}

    def section(self, slug: str) -> Element:
        return next(e for e in self.root.iter("section") if e.get("id") == slug)

    def sections(self) -> list[str]:
        return [element.get("id", "") for element in self.root.iter("section")]

    def by_id(self, name: str) -> Element:
        return next(e for e in self.root.iter() if e.get("id") == name)

    def marks(self, name: str) -> int:
        """Marks of a scatter or line, which matplotlib draws one by one or from a template."""
        group = next((e for e in self.root.iter() if e.get("id") == name), None)
        if group is None:
            return 0
        if any(True for _ in group.iter("use")):
            return len(list(group.iter("use")))
        return len(list(group.iter("path")))

    def finding(self, slug: str) -> str:
        return next(self.section(slug).iter("h3")).text or ""

    def missing(self) -> list[str]:
        """What the page says it does not show."""
        return [e.text or "" for e in self.root.iter("p") if e.get("class") == "missing"]

    def table(self, slug: str) -> list[list[str]]:
        """Rows of the numbers under a figure, exact values where cells have them."""
        body = next(self.section(slug).iter("tbody"))
        return [[td.get("data-value", td.text or "") for td in tr] for tr in body.iter("tr")]

    def numbers(self, slug: str) -> list[list[float]]:
        return [[float(cell) for cell in row] for row in self.table(slug)]
