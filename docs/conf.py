"""The documentation site: ``make docs`` builds it into build/docs with Sphinx, MyST and furo."""

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

from proto_reference import reference  # noqa: E402 - a module beside this file

import foremoe  # noqa: E402

project = "ForeMoE"
copyright = "the ForeMoE authors"
version = release = foremoe.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"ForeMoE {release}"
html_show_copyright = False
html_copy_source = False
nitpicky = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

_LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s]+)\)")
_MARKUP = re.compile(r"(?<!`)([*|]|(?<=\w)_(?!\w))")


def setup(app: Any) -> None:
    """Links that leave the site, the page of gRPC services, docstrings as they are written here."""
    app.connect("source-read", _page)
    app.connect("autodoc-process-docstring", _docstring)


def _page(_app: Any, name: str, source: list[str]) -> None:
    here = (DOCS / name).parent
    source[0] = _LINK.sub(lambda link: _kept(here, link), source[0])
    if name == "reference/rpc":
        source[0] += reference(sorted((ROOT / "proto").rglob("*.proto")))


def _kept(here: Path, link: re.Match[str]) -> str:
    """A link inside of docs/ as it is; of one to the repository, which must be there, its text."""
    target = (here / link[2].partition("#")[0]).resolve()
    if not target.exists():
        raise FileNotFoundError(f"{here}: {link[0]} leads nowhere")
    return link[0] if target.is_relative_to(DOCS) else f"{link[1]} (`{target.relative_to(ROOT)}`)"


def _docstring(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Indented parts are code, and stars, bars and trailing underscores mean themselves."""
    shown: list[str] = []
    for block in "\n".join(lines).strip().split("\n\n"):
        if block.startswith("    "):
            shown += ["::", "", *block.split("\n"), ""]
        elif block.startswith(">>>"):
            shown += [*block.split("\n"), ""]
        else:
            text = " ".join(line.strip() for line in block.split("\n"))
            shown += [_MARKUP.sub(r"\\\1", text), ""]
    lines[:] = shown
