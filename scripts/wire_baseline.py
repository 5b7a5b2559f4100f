"""Take a release's wire into the compatibility tests: the schema, and new golden messages' bytes.

    python scripts/wire_baseline.py

Run it once a release, after writing a text in tests/rpc/golden for what is new. What an earlier
release said stays: bytes that are there are never written again, and a schema that breaks them is
refused.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from google.protobuf import text_format  # noqa: E402
from google.protobuf.descriptor_pb2 import FileDescriptorSet  # noqa: E402

from tests.rpc.schema import breaking_changes, current_schema  # noqa: E402
from tests.rpc.test_wire import message_class  # noqa: E402

FOLDER = ROOT / "tests" / "rpc"


def main() -> None:
    path = FOLDER / "baseline.binpb"
    schema = current_schema()
    if path.exists():
        lost = breaking_changes(FileDescriptorSet.FromString(path.read_bytes()), schema)
        if lost:
            raise SystemExit("the schema breaks earlier releases:\n" + "\n".join(lost))
    path.write_bytes(schema.SerializeToString(deterministic=True))
    for text in sorted((FOLDER / "golden").glob("*.txtpb")):
        data = text.with_suffix(".binpb")
        if not data.exists():
            said = text.read_text(encoding="utf-8")
            message = text_format.Parse(said, message_class(said)())
            data.write_bytes(message.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
