"""The wire of release 0.1.0, kept as it was: its bytes are read today, and ours by its peers.

``golden`` has a message of every kind as text and as bytes, ``baseline.binpb`` the schema. A change
of the schema leaves both alone; a release adds what is new (``python scripts/wire_baseline.py``).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message

from foremoe.errors import VersionError
from foremoe.rpc import protocol
from foremoe.rpc.foresight import decode_chunk, decode_header
from foremoe.rpc.proposal import decode_proposal, decode_proposal_request
from foremoe.rpc.rank_plan import decode_rank_plan
from foremoe.rpc.registration import decode_registration
from foremoe.rpc.report import decode_reports
from foremoe.rpc.schedule import decode_micro_steps
from foremoe.rpc.status import decode_status
from tests.rpc.schema import breaking_changes, current_schema

FOLDER = Path(__file__).parent
GOLDEN = sorted((FOLDER / "golden").glob("*.txtpb"))
NAMES = [path.stem for path in GOLDEN]


def baseline() -> FileDescriptorSet:
    return FileDescriptorSet.FromString((FOLDER / "baseline.binpb").read_bytes())


def message_class(text: str) -> type[Message]:
    """Of the generated code, by the first line of a golden text."""
    name = text.partition("\n")[0].removeprefix("# proto-message: ")
    found: type[Message] = message_factory.GetMessageClass(
        descriptor_pool.Default().FindMessageTypeByName(name)
    )
    return found


def golden(name: str) -> Any:
    """A golden message, read from its bytes."""
    text = (FOLDER / "golden" / f"{name}.txtpb").read_text(encoding="utf-8")
    return message_class(text).FromString((FOLDER / "golden" / f"{name}.binpb").read_bytes())


@pytest.mark.parametrize("path", GOLDEN, ids=NAMES)
def test_earlier_bytes_say_what_they_said_and_are_written_alike(path: Path) -> None:
    text, data = path.read_text(encoding="utf-8"), path.with_suffix(".binpb").read_bytes()
    said = text_format.Parse(text, message_class(text)())
    read = golden(path.stem)
    assert read == said
    assert read.SerializeToString(deterministic=True) == data


@pytest.mark.parametrize("name", NAMES)
def test_what_a_newer_peer_adds_is_passed_over(name: str) -> None:
    """A varint and a string in fields that nobody has yet."""
    read = golden(name)
    more = type(read).FromString(
        read.SerializeToString() + b"\xc0\xbb\x01\x2a" + b"\xca\xbb\x01\x03new"
    )
    check = DECODERS.get(name)
    if check is not None:
        check(more)
    more.DiscardUnknownFields()
    assert more == read


DECODERS: dict[str, Callable[[Any], object]] = {
    "upload_header": lambda m: decode_header(m.header),
    "upload_histogram": lambda m: decode_chunk(
        m.chunk, decode_header(golden("upload_header").header), "chunk"
    ),
    "upload_expert_ids": lambda m: decode_chunk(
        m.chunk, decode_header(golden("upload_header").header), "chunk"
    ),
    "propose_request": decode_proposal_request,
    "propose_response": decode_proposal,
    "submit_request": lambda m: decode_micro_steps(m.micro_steps),
    "register_request": decode_registration,
    "plan": lambda m: decode_rank_plan(m, decode_registration(golden("register_request"))),
    "report_request": lambda m: decode_reports(m.micro_steps, 2),
    "status_response": decode_status,
}


@pytest.mark.parametrize("name", DECODERS)
def test_earlier_messages_are_understood(name: str) -> None:
    """The plan's digest, for one, is what it was."""
    assert DECODERS[name](golden(name)) is not None


def test_every_field_of_the_earlier_schema_is_in_a_golden_message() -> None:
    seen = {field for name in NAMES for field in used_fields(golden(name))}
    files = baseline().file
    all_fields = {
        f"{file.package}.{message.name}.{field.name}"
        for file in files
        for message in file.message_type
        for field in message.field
    }
    assert all_fields - seen == set()
    assert len(all_fields) > 80


def used_fields(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        yield field.full_name
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else [value]:
            yield from used_fields(one)


def test_the_schema_keeps_all_that_the_earlier_one_had() -> None:
    assert breaking_changes(baseline(), current_schema()) == []


def _renumber(schema: FileDescriptorSet) -> None:
    schema.file[4].message_type[0].field[3].number = 99


def _retype(schema: FileDescriptorSet) -> None:
    schema.file[4].message_type[0].field[1].type = FieldDescriptorProto.TYPE_SINT32


def _remove_field(schema: FileDescriptorSet) -> None:
    del schema.file[5].message_type[1].field[0]


def _leave_oneof(schema: FileDescriptorSet) -> None:
    schema.file[2].message_type[0].field[1].ClearField("oneof_index")


def _remove_message(schema: FileDescriptorSet) -> None:
    del schema.file[3].message_type[2]


def _renumber_value(schema: FileDescriptorSet) -> None:
    schema.file[1].enum_type[0].value[2].number = 7


def _stop_streaming(schema: FileDescriptorSet) -> None:
    schema.file[4].service[0].method[1].server_streaming = False


def _remove_file(schema: FileDescriptorSet) -> None:
    del schema.file[0]


@pytest.mark.parametrize(
    "change",
    [
        _renumber,
        _retype,
        _remove_field,
        _leave_oneof,
        _remove_message,
        _renumber_value,
        _stop_streaming,
        _remove_file,
    ],
)
def test_a_breaking_change_is_found(change: Callable[[FileDescriptorSet], None]) -> None:
    changed = baseline()
    change(changed)
    assert len(breaking_changes(baseline(), changed)) == 1


def test_what_is_added_breaks_nothing() -> None:
    more = baseline()
    more.file[4].message_type[0].field.add(name="new", number=99)
    more.file[4].message_type.add(name="New")
    more.file[4].service[0].method.add(name="New")
    assert breaking_changes(baseline(), more) == []


@pytest.mark.parametrize(
    ("agent", "relayed", "spoken", "refused"),
    [
        ("foremoe/0.1.0 foremoe-protocol/1-1 grpc-python/1.85.1", None, (1, 1), False),
        ("foremoe/9.0.0 foremoe-protocol/1-9 grpc-python/1.85.1", None, (1, 1), False),
        ("foremoe/9.0.0 foremoe-protocol/8-9 grpc-python/1.85.1", None, (1, 1), True),
        ("foremoe/0.1.0 foremoe-protocol/1-1 grpc-python/1.85.1", None, (2, 3), True),
        ("foremoe/0.2.0 foremoe-protocol/1-2 grpc-python/1.85.1", None, (2, 3), False),
        ("grpc-go/1.70.0", None, (1, 2), False),
        ("grpc-go/1.70.0", None, (2, 2), True),
        ("foremoe/0.1.0 foremoe-protocol/1-1 grpc-python/1.85.1", "2-2", (1, 1), True),
        ("foremoe/0.1.0 foremoe-protocol/2-2 grpc-python/1.85.1", "1-1", (1, 1), False),
        ("foremoe/0.1.0 foremoe-protocol/1-1 grpc-python/1.85.1", "1", (1, 1), False),
    ],
)
def test_peers_that_share_no_protocol_are_refused(
    agent: str, relayed: str | None, spoken: tuple[int, int], refused: bool
) -> None:
    metadata = [("user-agent", agent)]
    if relayed is not None:
        metadata.append((protocol.RELAYED, relayed))
    if not refused:
        protocol.check_spoken(metadata, spoken)
        return
    with pytest.raises(VersionError, match="install releases that share one"):
        protocol.check_spoken(metadata, spoken)
