"""A daemon's status as a file, for a report when the daemon is gone."""

from pathlib import Path
from zlib import crc32

from google.protobuf.message import DecodeError

from foremoe.errors import InvalidInputError
from foremoe.rpc.status import RuntimeStatus, decode_status, encode_status
from foremoe.rpc.v1.status_pb2 import GetStatusResponse

SUFFIX = ".status"
_HEAD = b"foremoe status\n"


def save_status(path: Path, status: RuntimeStatus) -> None:
    """A line of text, the CRC-32 of the rest, and the message of proto; InvalidInputError."""
    groups = [group.ep_group for group in status.ep_groups]
    content = encode_status(status, groups).SerializeToString()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_HEAD + crc32(content).to_bytes(4, "little") + content)
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error


def load_status(path: Path) -> RuntimeStatus:
    """As ``save_status`` wrote it; InvalidInputError for anything else."""
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from error
    start = len(_HEAD) + 4
    content = whole[start:]
    if whole[:start] != _HEAD + crc32(content).to_bytes(4, "little"):
        raise InvalidInputError(f"{path}: is no status of a daemon, or was damaged since")
    try:
        return decode_status(GetStatusResponse.FromString(content))
    except DecodeError as error:
        raise InvalidInputError(f"{path}: is no status of a daemon ({error})") from error
