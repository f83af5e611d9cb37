"""A WebP file's structure. Source: RFC 9649."""

import struct
from typing import Final

from server.images import exif
from server.images.header import ALLOWED, MAX_PARTS, BadImage, Header, check_size, damaged, truncated

SIGNATURE = b"RIFF"
_FORMAT: Final = "WEBP"
_ONCE = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")  # of an animation's frames the first alone
_KEY_FRAME = b"\x9d\x01\x2a"


def read(data: bytes) -> Header:
    """Raises `BadImage`."""
    if len(data) < 12 or data[8:12] != b"WEBP":
        raise BadImage(f"the file is RIFF, but no WebP; {ALLOWED}")
    view = memoryview(data)
    (size,) = struct.unpack_from("<I", data, 4)
    whole = 8 + size
    if whole > len(data) or size < 12:
        raise truncated(_FORMAT)
    metadata = b""
    kept: dict[bytes, memoryview] = {}  # by kind, in the file's order
    begin = 12
    for _ in range(MAX_PARTS):
        if begin + 8 > whole:
            break
        kind = data[begin : begin + 4]
        (length,) = struct.unpack_from("<I", data, begin + 4)
        end = begin + 8 + length + length % 2
        if begin + 8 + length > whole:
            raise truncated(_FORMAT)
        content = view[begin + 8 : begin + 8 + length]
        if not kept:
            check_size(*_size(kind, content))
        if kind in _ONCE and kind not in kept:
            kept[kind] = view[begin:end]
        elif kind == b"EXIF" and not metadata:
            metadata = bytes(content)
        begin = end
    else:
        raise damaged(_FORMAT, f"it has more than {MAX_PARTS:,} chunks")
    if not kept:
        raise truncated(_FORMAT)
    body = b"WEBP" + b"".join(kept.values())
    return Header(_FORMAT, exif.orientation(metadata), b"RIFF" + struct.pack("<I", len(body)) + body)


def _size(kind: bytes, content: memoryview) -> tuple[int, int]:
    """Width and height, of the first chunk."""
    if kind == b"VP8X" and len(content) >= 10:
        return 1 + int.from_bytes(content[4:7], "little"), 1 + int.from_bytes(content[7:10], "little")
    if kind == b"VP8L" and len(content) >= 5 and content[0] == 0x2F:
        bits = int.from_bytes(content[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(content) >= 10 and content[3:6] == _KEY_FRAME:
        width, height = struct.unpack_from("<HH", content, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise damaged(_FORMAT, "it does not begin as a picture")
