"""The committed RPC code is what the schema generates."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def generated(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in (folder / "foremoe" / "rpc" / "v1").iterdir()
        if path.is_file() and path.name != "__init__.py"
    }


def test_committed_code_is_regenerated_byte_for_byte(tmp_path: Path) -> None:
    assert version("grpcio-tools") == "1.74.0"
    subprocess.run([sys.executable, ROOT / "scripts" / "generate_rpc.py", tmp_path], check=True)
    fresh, committed = generated(tmp_path), generated(ROOT)
    assert fresh.keys() == committed.keys()
    assert [name for name in fresh if fresh[name] != committed[name]] == []
    schemas = list((ROOT / "proto").rglob("*.proto"))
    assert len(fresh) == 3 * len(schemas) > 0
