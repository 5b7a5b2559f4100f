"""Ways to spoil what files hold: arrays in archives, values in JSON, words in TOML."""

import copy
import io
import json
import random
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DEEP = 100_000
_WORDS = ("[" * 3000, "[]", "{}", "1" * 5000, "1e400", "-1", "0", "nan", "inf", "true", '"x"', "''")
_WORDS += ("1979-13-45", "1979-05-27T07:32:00Z", "0x" + "f" * 40, '"\\ud800"', "{" * 500, "=")
_HEADERS = (
    (b"(", b"(" * 200),
    (b"'shape': (", b"'shape': (9223372036854775807, "),
    (b"'shape': (", b"'shape': (-1, "),
    (b"'shape': (", b"'shape': (1000000000, 4000000, "),
    (b"'shape': (", b"'shape': (36893488147419103232, "),
    (b"False", b"True"),
    (b"False", b"9"),
    (b"'<i8'", b"'|O'"),
    (b"'<i4'", b"'<U9'"),
    (b"'<i4'", b"[('a', '<i4')]"),
    (b"|u1", b"|O"),
    (b"|u1", b"zz"),
    (b"}", b"" * 1),
    (b"{", b"{{"),
    (b"{'descr'", b"-" * 300),
)


def spoiled_npz(arrays: Mapping[str, NDArray[Any]], chance: random.Random) -> bytes:
    """An archive of ``arrays`` with one that is missing, strange, or strangely stored."""
    changed: dict[str, Any] = dict(arrays)
    name = chance.choice(sorted(changed))
    way = chance.randrange(9)
    if way == 0:
        del changed[name]
    elif way == 1:
        changed[f"{name}x"] = changed[name]
    elif way == 2:
        changed[name] = changed[name].astype(chance.choice((np.int8, np.float64, np.int64, "U3")))
    elif way == 3:
        changed[name] = changed[name][..., None] if chance.random() < 0.5 else changed[name].ravel()
    elif way == 4:
        changed[name] = changed[name][: chance.randrange(3)] if changed[name].ndim else np.zeros(2)
    elif way == 5:
        changed[name] = _extreme(changed[name], chance)
    elif way == 6:
        changed[name] = np.array([{"pickled": name}], object)
    members = {key: _npy(array) for key, array in changed.items()}
    if way >= 7:
        old, new = chance.choice(_HEADERS)
        members[name] = _resized(members[name].replace(old, new, 1))
    return _archive(members, chance)


def _extreme(array: NDArray[Any], chance: random.Random) -> NDArray[Any]:
    changed = array.copy()
    if changed.size:
        limits = np.iinfo(changed.dtype) if changed.dtype.kind in "iu" else np.finfo(changed.dtype)
        value = chance.choice((limits.min, limits.max, 0, 1))
        changed.reshape(-1)[chance.randrange(changed.size)] = value
    return changed


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _resized(npy: bytes) -> bytes:
    """Let the length before the header say how long it is now."""
    end = npy.find(b"\n")
    return npy[:8] + min(end - 9, 65535).to_bytes(2, "little") + npy[10:] if end > 9 else npy


def _archive(members: Mapping[str, bytes], chance: random.Random) -> bytes:
    """A zip; now and then with a member of another compression, or under a strange name."""
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    kind = chance.choice(kinds)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in members.items():
            suffix = ".npy" if chance.random() < 0.98 else chance.choice((".txt", "/../../x.npy"))
            archive.writestr(f"{name}{suffix}", data)
    return buffer.getvalue()


def spoiled_json(content: Any, chance: random.Random) -> bytes:
    """JSON with one value replaced, lost or repeated, or nested deeper than any parser goes."""
    if chance.random() < 0.02:
        return b"[" * _DEEP + b"]" * _DEEP
    changed = json.loads(json.dumps(content))
    for _ in range(chance.choice((1, 1, 2, 3))):
        holder, key = chance.choice(list(_nodes(changed)))
        way = chance.randrange(5)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder[key], str):
            holder[key] = holder[key][: len(holder[key]) // 2] + chance.choice(("", "A", "=", "é"))
        elif way == 2 and isinstance(holder[key], list):
            holder[key] = holder[key] * chance.choice((0, 2))
        else:
            holder[key] = copy.deepcopy(chance.choice(_JSON))
    return json.dumps(changed).encode()


_JSON: tuple[Any, ...] = (None, True, 0, 1, -1, 2**31, 2**63, 10**400, 1.5, 1e308, float("nan"))
_JSON += (float("inf"), "", "x", "\ud800", "\x00", [], {}, [[]], [None], {"": 0}, [1, 2, 3], [[9]])


def _nodes(content: Any) -> Any:
    """Every (container, key) of a tree, at least one."""
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    if not keys:
        holder: dict[str, Any] = {"": None}
        yield holder, ""
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list) and content[key]:
            yield from _nodes(content[key])


def spoiled_toml(text: str, chance: random.Random) -> bytes:
    """A value, key or line that should not be there."""
    lines = text.splitlines()
    place = chance.randrange(len(lines))
    way = chance.randrange(4)
    if way == 0:
        lines.insert(place, lines[chance.randrange(len(lines))])
    elif way == 1:
        del lines[place]
    elif way == 2:
        lines[place] = re.sub(r"=.*", lambda _: f"= {chance.choice(_WORDS)}", lines[place])
    else:
        word = chance.choice(("x", "serve", "a.b", "é", ""))
        lines[place] = re.sub(r"\w+", word, lines[place], count=1)
    return "\n".join(lines).encode("utf-8", "surrogatepass")
