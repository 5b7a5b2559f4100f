"""Which room imports which: the table in docs/architecture.md is the code's."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `(?:foremoe/)?(\w+)/` \|[^|]*\|([^|]*)\|$", re.MULTILINE)


def stated() -> dict[str, set[str]]:
    """Room -> rooms it imports, by the table; all of them for \"all\"."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = {room: set(re.findall(r"\w+", named)) for room, named in ROW.findall(text)}
    return {
        room: rows.keys() - {room} if named == {"all"} else named for room, named in rows.items()
    }


def found(room: str, rooms: set[str]) -> set[str]:
    """The other rooms that any module of the room imports, anywhere in it."""
    folder = ROOT / room if (ROOT / room).is_dir() else ROOT / "foremoe" / room
    names = set()
    for module in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    imported = {name.split(".")[1] for name in names if name.startswith("foremoe.")}
    return (imported & rooms) - {room}


def test_every_room_is_in_the_table() -> None:
    folders = {init.parent.name for init in (ROOT / "foremoe").glob("*/__init__.py")}
    assert stated().keys() == folders | {"planner", "runtime", "transfer"}


def test_rooms_import_what_the_table_says() -> None:
    table = stated()
    code = {room: found(room, set(table)) for room in table}
    for room in table.keys() - {"commands"}:
        assert code[room] == table[room], room
    assert code["commands"] <= table["commands"]
