"""Reader of protobuf messages, for checks before a library parses them. It copies nothing and needs no package."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; the deprecated groups (3 and 4) are errors."""
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
MAX_VARINT_BYTES = 10


class ProtobufError(ValueError):
    """The bytes are not a protobuf message."""


def fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Fields of a message in order: number, wire type, and the integer of a varint or the bytes of any other type.

    Raises:
        ProtobufError: a field is malformed or does not end within the message.
    """
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ProtobufError("a field has the number 0")
        if wire == VARINT:
            value, position = _varint(message, position)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, position = _varint(message, position)
        elif wire in FIXED_SIZES:
            size = FIXED_SIZES[wire]
        else:
            raise ProtobufError(f"a field has the wire type {wire}")
        if size > end - position:
            raise ProtobufError("a field is longer than its message")
        yield number, wire, message[position : position + size]
        position += size


def varints(packed: memoryview) -> Iterator[int]:
    """Integers of a packed field.

    Raises:
        ProtobufError: the last one does not end.
    """
    position = 0
    while position < len(packed):
        value, position = _varint(packed, position)
        yield value


def signed(value: int) -> int:
    """The int64 that a varint encodes."""
    return value - 2**64 if value >= 2**63 else value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * MAX_VARINT_BYTES, 7):
        if position >= len(message):
            raise ProtobufError("a number does not end")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, position
    raise ProtobufError("a number has more than 64 bits")
