"""Fields of a protobuf message without its classes, for who cannot afford onnx (0.3 s). Knows no message."""

from collections.abc import Iterator


def fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The fields of one number that have a length. Raises `ValueError` or `IndexError`."""
    for number, value in _all(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def numbers(message: memoryview, wanted: int) -> Iterator[int]:
    """The integers of one field, packed or not. Raises `ValueError` or `IndexError`."""
    for number, value in _all(message):
        if number == wanted and isinstance(value, int):
            yield value
        elif number == wanted and isinstance(value, memoryview):
            position = 0
            while position < len(value):
                single, position = _varint(value, position)
                yield single


def _all(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        match key & 7:  # the wire type
            case 0:
                value, position = _varint(message, position)
                yield key >> 3, value
            case 1:
                position += 8
            case 2:
                length, position = _varint(message, position)
                if position + length > len(message):
                    raise ValueError("a field ends beyond its message")
                yield key >> 3, message[position : position + length]
                position += length
            case 5:
                position += 4
            case other:
                raise ValueError(f"wire type {other}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    while True:
        byte = message[position]
        number, shift, position = number | (byte & 0x7F) << shift, shift + 7, position + 1
        if byte < 0x80:
            return number, position
