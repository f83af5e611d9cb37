"""A body's bytes into JSON values: how large, how deep and how clean it may be. Knows no field."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Receive

from server.http.replies import MAX_KEY, Refused, Wrong, of_message

BODY_BYTES = 64 * 2**20  # of one body: four pictures of 12 MB in base64
BODIES_BYTES = 4 * BODY_BYTES  # of all bodies that are being read or worked on
MAX_MARKS = 100_000  # commas, brackets and quotes, those in texts too: four texts of 10,000 characters have room
MAX_VALUES = 2_000  # commas and brackets outside texts; all keys, with dozens of LoRAs and pictures, are a few hundred
_FEW_BRACKETS = 100  # no text with so few is too deep for Python's parser
_MAX_DIGITS = 40  # of a whole number; any field's bounds are far below
_JSON = re.compile(r'application/(?:[\w.+-]+\+)?json(?:\s*;\s*charset="?utf-?8"?)?\s*;?', re.IGNORECASE)


class Left(Exception):
    """The caller did, before the end of its request."""


class NotJson(Exception):
    """The text cannot be taken for what it was meant to be."""

    def __init__(self, wrong: Wrong) -> None:
        super().__init__(wrong.message)
        self.wrong = wrong


@dataclass
class Room:
    """Memory for bodies: together they stay within a bound, or the next is told to come again."""

    left: int = BODIES_BYTES

    def take(self, size: int) -> None:
        """Raises `Refused`."""
        if size > self.left:
            message = "this service reads as many bodies as it has memory for; retry in 1 s"
            raise Refused(of_message(429, message, "OVERLOADED", retry_seconds=1.0))
        self.left -= size


def refuse_what_is_not_json(headers: Headers) -> None:
    """Raises `Refused`: by the headers alone, before anything is read."""
    given = headers.get("content-type", "")
    if not _JSON.fullmatch(given.strip()):
        raise Refused(
            of_message(415, f"Content-Type is {given[:100]!r}; it must be application/json, in UTF-8", "CONTENT_TYPE")
        )
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refused(
            of_message(415, f"Content-Encoding is {encoding[:100]!r}; send the body as it is", "CONTENT_TYPE")
        )
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > BODY_BYTES:
        raise _too_large()


@asynccontextmanager
async def read(receive: Receive, room: Room, seconds: float) -> AsyncGenerator[bytearray, None]:
    """The body, whose memory is counted until the block ends. Raises `Refused`, `NotJson`, `Left`."""
    body = bytearray()
    taken = marks = 0
    try:
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Left
                    chunk = message.get("body", b"")
                    if len(body) + len(chunk) > BODY_BYTES:
                        raise _too_large()
                    marks += _marks(chunk)
                    _refuse_many(marks)  # now, not when all of it is here
                    room.take(len(chunk))
                    taken += len(chunk)
                    body += chunk
                    more = message.get("more_body", False)
        except TimeoutError:
            answer = of_message(408, f"the body did not come within {seconds:g} s", "BODY_TIMEOUT")
            raise Refused(replace(answer, headers={"connection": "close"})) from None  # nor would the rest of it
        yield body
    finally:
        room.left += taken


def parse(body: bytes | bytearray) -> object:
    """JSON values. Raises `NotJson`.

    Stricter than the grammar where readers differ: a key twice, NaN, half of a surrogate pair in a key. A whole number
    that nobody means becomes a float, infinite if need be: who reads the field says that it is too large.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(error.start, "not UTF-8") from None
    _refuse_many(_marks(body))
    if _structure(body) > MAX_VALUES:
        raise _too_many(f"more than {MAX_VALUES:,} values; no request needs so many")
    if text.count("[") + text.count("{") > _FEW_BRACKETS:
        _refuse_depth(text)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise _not_json(error.pos, error.msg) from None


def _marks(content: bytes | bytearray) -> int:
    """At least as many as values and texts, counted as fast as memory is read."""
    return content.count(b'"') + _separators(content)


def _separators(content: bytes | bytearray) -> int:
    return content.count(b"[") + content.count(b"{") + content.count(b",")


def _structure(content: bytes | bytearray) -> int:
    """Commas and brackets outside texts: at least as many as values. For few quotes: each is looked at."""
    separators, in_text = 0, False
    for part in content.split(b'"'):
        if not in_text:
            separators += _separators(part)
            in_text = True
        elif (len(part) - len(part.rstrip(b"\\"))) % 2 == 0:  # else the quote is the text's
            in_text = False
    return separators


def _refuse_many(marks: int) -> None:
    if marks > MAX_MARKS:
        raise _too_many(f"more than {MAX_MARKS:,} commas, brackets and quotes; no body needs so many")


def _too_many(message: str) -> NotJson:
    return NotJson(Wrong((), message, "json_invalid"))


def _refuse_depth(text: str) -> None:
    """By a parser that bounds it, as Python's does not."""
    try:
        from_json(text)
    except ValueError as error:
        raise NotJson(Wrong((), f"not JSON: {error}", "json_invalid")) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise NotJson(Wrong((key,), "given twice; give it once", "duplicate_key"))
        if not key.isascii() and key != key.encode("utf-8", "replace").decode("utf-8"):
            raise NotJson(Wrong((), f"the key {key[:MAX_KEY]!a} has half of a surrogate pair", "string_unicode"))
        found[key] = value
    return found


def _no_constant(name: str) -> object:
    raise NotJson(Wrong((), f"{name} is no JSON number", "json_invalid"))


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _not_json(position: int, why: str) -> NotJson:
    return NotJson(Wrong((position,), f"not JSON: {why} at position {position}", "json_invalid"))


def _too_large() -> Refused:
    return Refused(
        of_message(413, f"the body is larger than {BODY_BYTES >> 20} MiB; send smaller pictures", "BODY_TOO_LARGE")
    )
