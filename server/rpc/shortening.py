"""How to say much in little room. Pure: texts and google.rpc's messages; knows no fault."""

from collections.abc import Callable, Sequence

from google.rpc import error_details_pb2

_CUT = "..."
_LEAST = 24  # bytes of a description; with less none is worth its place
_FIELD_BYTES = 100
_MOST_SENTENCES = 50  # that are looked at


def sent_bytes(text: str) -> int:
    """In a status message, where gRPC writes three for each that is not printable ASCII, and for a percent sign."""
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode())


def utf8_bytes(text: str) -> int:
    """In a message's field."""
    return len(text.encode())


def cut(text: str, room: int, size: Callable[[str], int]) -> str:
    """The begin of a text that is too large for `room`, which is more than three bytes."""
    if size(text[:room]) <= room and len(text) <= room:
        return text
    left = room - len(_CUT)
    for position, character in enumerate(text):
        left -= size(character)
        if left < 0:
            return text[:position].rstrip() + _CUT
    return text


def summed_up(sentences: Sequence[str], room: int) -> str:
    """As many of the first sentences (there is one at least) as there is room for, and how many more there are."""
    short = [cut(sentence, room // 2, sent_bytes) for sentence in sentences[:_MOST_SENTENCES]]
    for count in range(len(short), 1, -1):
        if sent_bytes(told := _listed(short[:count], len(sentences))) <= room:
            return told
    rest = f"; and {len(sentences) - 1} more" if len(sentences) > 1 else ""
    return cut(sentences[0], room - len(rest), sent_bytes) + rest


def _listed(told: Sequence[str], of: int) -> str:
    return "; ".join((*told, f"and {of - len(told)} more") if of > len(told) else told)


def fitted(request: error_details_pb2.BadRequest, room: int) -> error_details_pb2.BadRequest:
    """The same in `room` bytes: long descriptions are cut, all at one length; where even that is not enough, the last
    violations are counted instead."""
    if request.ByteSize() <= room:
        return request
    count = len(request.field_violations)
    kept = min(count, room // _LEAST)
    while kept and _with_descriptions(request, kept, _LEAST).ByteSize() > room:
        kept -= 1
    length, too_long = _LEAST, room
    while too_long - length > 1:
        middle = (length + too_long) // 2
        fits = _with_descriptions(request, kept, middle).ByteSize() <= room
        length, too_long = (middle, too_long) if fits else (length, middle)
    return _with_descriptions(request, kept, length)


def _with_descriptions(request: error_details_pb2.BadRequest, kept: int, length: int) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation
    told = [
        violation(field=cut(v.field, _FIELD_BYTES, utf8_bytes), description=cut(v.description, length, utf8_bytes))
        for v in request.field_violations[:kept]
    ]
    if more := len(request.field_violations) - kept:
        told.append(violation(description=f"and {more} more"))
    return error_details_pb2.BadRequest(field_violations=told)
