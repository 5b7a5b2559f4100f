"""The schema as descriptors, and what of an earlier one a later one no longer keeps."""

from collections.abc import Iterator
from typing import TypeVar

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from foremoe.rpc.v1 import (
    array_pb2,
    foresight_pb2,
    rank_pb2,
    schedule_pb2,
    stage_pb2,
    status_pb2,
    timeline_pb2,
)

MODULES = (
    array_pb2,
    stage_pb2,
    foresight_pb2,
    schedule_pb2,
    timeline_pb2,
    rank_pb2,
    status_pb2,
)
_SAME_IN_FIELDS = ("number", "type", "label", "type_name", "proto3_optional", "json_name")

Named = TypeVar(
    "Named", DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, ServiceDescriptorProto
)


def current_schema() -> FileDescriptorSet:
    """Of the committed code, dependencies first; ``buf`` reads it too."""
    files = [FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in MODULES]
    for file in files:
        for message in file.message_type:
            _name_for_json(message)
    return FileDescriptorSet(file=files)


def _name_for_json(message: DescriptorProto) -> None:
    """Generated code leaves out the names that follow from the field's."""
    for field in message.field:
        first, *rest = field.name.split("_")
        field.json_name = field.json_name or first + "".join(map(str.capitalize, rest))
    for nested in message.nested_type:
        _name_for_json(nested)


def breaking_changes(earlier: FileDescriptorSet, later: FileDescriptorSet) -> list[str]:
    """One line for each thing of ``earlier`` that peers speaking it would miss or misread."""
    files = {file.name: file for file in later.file}
    return [line for file in earlier.file for line in _file(file, files.get(file.name))]


def _file(earlier: FileDescriptorProto, later: FileDescriptorProto | None) -> Iterator[str]:
    if later is None or later.package != earlier.package:
        yield f"{earlier.name} is gone, or in another package"
        return
    for enum, now in _pairs(earlier.enum_type, later.enum_type):
        yield from [f"enum {enum.name} is gone"] if now is None else _enum(enum, now)
    for message, kept in _pairs(earlier.message_type, later.message_type):
        yield from _message(message, kept, message.name)
    for service, offered in _pairs(earlier.service, later.service):
        yield from _service(service, offered)


def _enum(earlier: EnumDescriptorProto, later: EnumDescriptorProto) -> Iterator[str]:
    numbers = {value.name: value.number for value in later.value}
    for value in earlier.value:
        if numbers.get(value.name) != value.number:
            yield f"{earlier.name}.{value.name} was {value.number}"


def _message(earlier: DescriptorProto, later: DescriptorProto | None, path: str) -> Iterator[str]:
    if later is None:
        yield f"message {path} is gone"
        return
    for field, now in _pairs(earlier.field, later.field):
        if now is None:
            yield f"{path}.{field.name} is gone"
            continue
        for name in _SAME_IN_FIELDS:
            if getattr(now, name) != getattr(field, name):
                yield f"{path}.{field.name}: {name} was {getattr(field, name)!r}"
        if _oneof(earlier, field) != _oneof(later, now):
            yield f"{path}.{field.name}: oneof was {_oneof(earlier, field)!r}"
    for nested, kept in _pairs(earlier.nested_type, later.nested_type):
        yield from _message(nested, kept, f"{path}.{nested.name}")


def _service(
    earlier: ServiceDescriptorProto, later: ServiceDescriptorProto | None
) -> Iterator[str]:
    methods = {} if later is None else {method.name: method for method in later.method}
    for method in earlier.method:
        now = methods.get(method.name)
        if now is None or now.SerializeToString() != method.SerializeToString():
            yield f"{earlier.name}.{method.name} is gone, or takes or gives other messages"


def _oneof(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    has_one = field.HasField("oneof_index")
    return str(message.oneof_decl[field.oneof_index].name) if has_one else ""


def _pairs(
    earlier: Iterator[Named], later: Iterator[Named]
) -> Iterator[tuple[Named, Named | None]]:
    by_name = {one.name: one for one in later}
    for one in earlier:
        yield one, by_name.get(one.name)
