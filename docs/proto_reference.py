"""Markdown from the comments of .proto files, which are written in one style throughout."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(r"(?P<kind>service|message|enum|oneof) (?P<name>\w+) {")
_CALL = re.compile(r"rpc (?P<name>\w+)\((?P<asked>[\w. ]+)\) returns \((?P<answer>[\w. ]+)\);")
_FIELD = re.compile(r"(?P<type>(?:repeated |optional |map<[^>]+>|)[\w.]*) (?P<name>\w+) = \d+;")
_VALUE = re.compile(r"(?P<name>[A-Z_0-9]+) = \d+;")


@dataclass
class _Block:
    """A service, message or enum: its comment, and (name, type, comment) of what is in it."""

    kind: str
    name: str
    comment: str
    members: list[tuple[str, str, str]] = field(default_factory=list)


def reference(paths: Sequence[Path]) -> str:
    """All services, then all messages and enums."""
    blocks = [block for path in paths for block in _blocks(path.read_text(encoding="utf-8"))]
    services = [block for block in blocks if block.kind == "service"]
    others = [block for block in blocks if block.kind != "service"]
    parts = ["", "## Services", *map(_shown, services), "## Messages", *map(_shown, others)]
    return "\n\n".join(parts) + "\n"


def _blocks(text: str) -> Iterator[_Block]:
    """A oneof's fields count as its message's."""
    open_blocks: list[_Block] = []
    comment: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        said, comment = " ".join(comment), []
        if found := _BLOCK.match(line):
            inner = found["kind"] == "oneof"
            block = open_blocks[-1] if inner else _Block(found["kind"], found["name"], said)
            open_blocks.append(block)
            if not inner:
                yield block
        elif line == "}":
            open_blocks.pop()
        elif open_blocks and (member := _member(line)):
            open_blocks[-1].members.append((*member, said))


def _member(line: str) -> tuple[str, str] | None:
    if found := _CALL.match(line):
        return found["name"], f"{found['asked']} -> {found['answer']}"
    if found := _FIELD.match(line):
        return found["name"], found["type"].strip()
    if found := _VALUE.match(line):
        return found["name"], ""
    return None


def _shown(block: _Block) -> str:
    rows = [
        f"| `{name}` | {f'`{kind}`' if kind else ''} | {said.replace('|', chr(92) + '|')} |"
        for name, kind, said in block.members
    ]
    head = [f"### {block.name}", "", block.comment, ""]
    return "\n".join(head + (["| name | type | |", "| --- | --- | --- |", *rows] if rows else []))
