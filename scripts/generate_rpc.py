"""Regenerate foremoe/rpc/v1 from proto/. Run it after every change to a .proto file.

    python scripts/generate_rpc.py [OUTPUT_FOLDER]

grpcio-tools is pinned to 1.74.0: newer generators emit code that would force newer protobuf and
grpcio into the trainer's environment.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]


def generate(output: Path) -> None:
    sources = sorted(
        str(path.relative_to(ROOT / "proto")) for path in ROOT.glob("proto/**/*.proto")
    )
    arguments = [
        "protoc",
        f"-I{ROOT / 'proto'}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={output}",
        f"--pyi_out={output}",
        f"--grpc_python_out={output}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see its message above")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
