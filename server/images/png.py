"""A PNG file's structure. Source: PNG specification (third edition)."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from server.images import exif
from server.images.header import MAX_PARTS, Header, check_size, damaged, truncated

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FORMAT: Final = "PNG"
_GREY, _RGB, _PALETTE = 0, 2, 3
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}  # by colour type
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_DEFLATE_RATIO = 1032  # the most that deflate can shrink anything by


@dataclass(frozen=True)
class _Pixels:
    """Of a header that is allowed."""

    colour: int
    depth: int
    rows_bytes: int  # before compression, without interlacing's further rows


def read(data: bytes) -> Header:
    """Raises `BadImage`. An animation's first picture is its default one: frames are chunks that are left out."""
    view = memoryview(data)
    metadata, begin = b"", len(SIGNATURE)
    single: dict[bytes, bytes] = {}  # what chunks say of which there is one
    coded: list[memoryview] = []
    for _ in range(MAX_PARTS):
        if begin + 12 > len(data):
            raise truncated(_FORMAT)
        length, kind = struct.unpack_from(">I4s", data, begin)
        end = begin + 12 + length  # length, kind, content, checksum
        if end > len(data):
            raise truncated(_FORMAT)
        content = view[begin + 8 : end - 4]
        needed = kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
        if needed and zlib.crc32(view[begin + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise damaged(_FORMAT, f"the checksum of its {kind.decode()} chunk is wrong")
        if (not single) != (kind == b"IHDR"):
            raise damaged(_FORMAT, "its header is not at its begin")
        if kind == b"IHDR":
            pixels = _pixels(bytes(content))
        if kind == b"IEND":
            return Header(_FORMAT, exif.orientation(metadata), _plain(single, pixels, b"".join(coded)))
        if kind == b"IDAT":
            coded.append(content)
        elif needed:
            single.setdefault(kind, bytes(content))
        elif kind == b"eXIf" and not metadata:
            metadata = bytes(content)
        begin = end
    raise damaged(_FORMAT, f"it has more than {MAX_PARTS:,} chunks")


def _pixels(header: bytes) -> _Pixels:
    if len(header) != 13:
        raise damaged(_FORMAT, "its header has a wrong length")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", header)
    known = depth in _DEPTHS.get(colour, ()) and compression == filtering == 0 and interlace <= 1
    if not known or not width or not height:
        raise damaged(_FORMAT, "its header says what no PNG can be")
    check_size(width, height)
    return _Pixels(colour, depth, height * (1 + (width * depth * _CHANNELS[colour] + 7) // 8))  # a row: filter, pixels


def _plain(single: Mapping[bytes, bytes], pixels: _Pixels, coded: bytes) -> bytes:
    """The file of these chunks."""
    if len(coded) * _DEFLATE_RATIO < pixels.rows_bytes:
        raise truncated(_FORMAT)
    chunks = [(b"IHDR", single[b"IHDR"])]
    palette = single.get(b"PLTE", b"")
    if pixels.colour == _PALETTE:
        if not 3 <= len(palette) <= 3 * 2**pixels.depth or len(palette) % 3:
            raise damaged(_FORMAT, "its palette is missing or of a wrong length")
        chunks.append((b"PLTE", palette))
    if b"tRNS" in single:
        chunks += _transparent(single[b"tRNS"], pixels, len(palette) // 3)
    chunks += ((b"IDAT", coded), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
        for kind, content in chunks
    )


def _transparent(content: bytes, pixels: _Pixels, colours: int) -> Iterator[tuple[bytes, bytes]]:
    """What is transparent, in the scale of Pillow's pixels: it reads colours of 16 bits and greys of 2 and 4 as 8."""
    if pixels.colour == _PALETTE:
        yield b"tRNS", content[:colours]
    elif pixels.colour in (_GREY, _RGB):
        if len(content) != 2 * _CHANNELS[pixels.colour]:
            raise damaged(_FORMAT, "its transparent colour has a wrong length")
        key = struct.unpack(f">{len(content) // 2}H", content)
        if pixels.colour == _RGB and pixels.depth == 16:
            key = tuple(value >> 8 for value in key)
        elif pixels.depth in (2, 4):
            key = tuple(min(value * 255 // (2**pixels.depth - 1), 255) for value in key)
        yield b"tRNS", struct.pack(f">{len(key)}H", *key)
