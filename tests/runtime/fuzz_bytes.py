"""Ways to spoil bytes and messages, the same for the same random state."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# No message ends like this: a tag of zero, a length beyond the end, an unfinished varint, a group
# that is never closed, groups within groups beyond any limit.
NO_ENDINGS = (
    b"\x00",
    b"\x0a\xff\xff\xff\xff\x07",
    b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x08" + b"\xff" * 12,
    b"\xff" * 5,
    b"\x0b",
    b"\x0b" * 500,
)
_INTEGERS = (0, 1, 2, 3, 5, 127, 128, 255, 256, 65535, 65536, 65537, 2**24, 2**24 + 1)
_INTEGERS += (2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_INTEGERS += (-1, -2, -(2**31), -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e12, 1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "a", "b", "group", "x" * 256, "x" * 257, "x" * 70_000, "a\nb", "\x00", "\x1b[31m")
_TEXTS += ("é" * 256, "\U0001f600" * 200, "\u202e", "group\u200b", "../../etc/passwd", "%s%n", "'")
_BITS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32),
    FieldDescriptor.TYPE_UINT64: (0, 2**64),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63),
}
Place = tuple[Message, FieldDescriptor]


def spoiled_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, lost, repeated, moved or added, in up to four places."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        way = chance.randrange(6)
        if way == 0:
            changed[place : place + length] = chance.randbytes(len(changed[place : place + length]))
        elif way == 1 and place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
        elif way == 2:
            del changed[place : place + length]
        elif way == 3:
            changed[place:place] = changed[place : place + length]
        elif way == 4:
            changed[place:place] = chance.choice((b"\xff" * length, b"\x00" * length))
        elif chance.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def spoiled_message(message: Message, chance: random.Random) -> bytes:
    """A copy, serialized, with one to three of its fields at values that nobody expects."""
    copy = type(message)()
    copy.CopyFrom(message)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _spoil_field(*chance.choice(list(_places(copy))), chance)
    return copy.SerializeToString()


def spoiled_wire(message: Message, chance: random.Random) -> bytes:
    """What no encoder writes: text that is no UTF-8, an impossible ending, a message twice."""
    data = message.SerializeToString()
    texts = [text for text in _texts(message) if text]
    way = chance.randrange(4)
    if way == 0 and texts:
        text = chance.choice(texts).encode()
        return data.replace(text, bytes([chance.choice((0x80, 0xC0, 0xFF))]) + text[1:], 1)
    if way == 1:
        return data + chance.choice(NO_ENDINGS)
    if way == 2:
        return data + data
    return data + chance.randbytes(chance.randint(1, 40))


def spoiled(message: Message, chance: random.Random) -> bytes:
    """Any of the three, fields most often."""
    way = chance.random()
    if way < 0.55 and message.DESCRIPTOR.fields:
        return spoiled_message(message, chance)
    if way < 0.75:
        return spoiled_wire(message, chance)
    return spoiled_bytes(message.SerializeToString(), chance)


def spoiled_order(items: Sequence[Any], chance: random.Random) -> list[Any]:
    """One lost, repeated, moved, or all shuffled."""
    changed = list(items)
    place, other = chance.randrange(len(changed)), chance.randrange(len(changed))
    way = chance.randrange(5)
    if way == 0:
        del changed[place]
    elif way == 1:
        changed.insert(other, changed[place])
    elif way == 2:
        changed[place], changed[other] = changed[other], changed[place]
    elif way == 3:
        del changed[place:]
    else:
        chance.shuffle(changed)
    return changed


def _places(message: Message) -> Iterator[Place]:
    """Every field of ``message`` and of the messages that it holds."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _places(inner)


def _texts(message: Message) -> Iterator[str]:
    for holder, field in _places(message):
        if field.type == FieldDescriptor.TYPE_STRING:
            value = getattr(holder, field.name)
            yield from value if field.is_repeated else [value]


def _spoil_field(message: Message, field: FieldDescriptor, chance: random.Random) -> None:
    name = field.name
    if field.is_repeated:
        _spoil_repeated(getattr(message, name), field, chance)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if message.HasField(name):
            message.ClearField(name)
        else:
            getattr(message, name).SetInParent()
    elif field.type == FieldDescriptor.TYPE_BYTES:
        setattr(message, name, _spoiled_data(getattr(message, name), chance))
    else:
        setattr(message, name, _value(field, chance))


def _spoil_repeated(values: Any, field: FieldDescriptor, chance: random.Random) -> None:
    way = chance.randrange(4)
    held = list(values)
    if way == 0:
        held = []
    elif way == 1:
        held = held * chance.choice((2, 3, 70, 1000))
    elif way == 2:
        held = held[::-1][chance.randrange(2) :]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        held = [*held, values.add()]
    else:
        held = [*held, _value(field, chance)]
        chance.shuffle(held)
    copies = [type(one).FromString(one.SerializeToString()) if isinstance(one, Message) else one
              for one in held[:4000]]  # fmt: skip
    del values[:]
    values.extend(copies)


def _value(field: FieldDescriptor, chance: random.Random) -> Any:
    """A scalar that the field's type can hold."""
    if field.type == FieldDescriptor.TYPE_BOOL:
        return chance.random() < 0.5
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return chance.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_STRING:
        return chance.choice(_TEXTS)
    low, high = _BITS[field.type]
    return chance.choice([number for number in _INTEGERS if low <= number < high])


def _spoiled_data(data: bytes, chance: random.Random) -> bytes:
    way = chance.randrange(6)
    if way == 0:
        return b""
    if way == 1:
        return data + bytes(chance.choice((1, 4, 8)))
    if way == 2:
        return data[: chance.randrange(len(data) + 1)]
    if way == 3:
        return b"\xff" * len(data)
    if way == 4:
        return chance.randbytes(len(data))
    return spoiled_bytes(data, chance)
