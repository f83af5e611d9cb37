"""A JPEG file's structure. Sources: ITU-T T.81, annex B; JFIF 1.02; Adobe technical note 5116 (APP14)."""

import re
import struct
from typing import Final

from server.images import exif
from server.images.header import MAX_PARTS, Header, check_size, damaged, truncated

SIGNATURE = b"\xff\xd8\xff"
_FORMAT: Final = "JPEG"
_WINDOW = 2**18  # bytes searched at a time: other threads wait meanwhile
# Zeros are stuffing, d0..d7 restarts within a scan, further ff fill. (With "ff+" a file of nothing else takes hours.)
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_ARITHMETIC_FRAMES = (0xC9, 0xCA)
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless and hierarchical
_APP0, _APP14 = 0xE0, 0xEE  # which colours the components are
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # Huffman, arithmetic, quantisation, restart interval
_MAX_SCANS = 32  # a progressive file has about ten; each costs a pass over all pixels, however small it is


def read(data: bytes) -> Header:
    """Raises `BadImage`. What follows the first picture's end is left out."""
    view = memoryview(data)
    metadata, kept, frames, scans, least, coded = b"", [view[:2]], 0, 0, 0, 0
    begin = 2
    for _ in range(MAX_PARTS):
        found = _next_marker(data, begin)
        if found is None:
            raise truncated(_FORMAT)
        marker, begin = found[1][0], found.end()
        if marker == _END:
            if not frames or not scans or coded < least:
                raise truncated(_FORMAT)
            return Header(_FORMAT, exif.orientation(metadata), b"".join((*kept, b"\xff\xd9")))
        if begin + 2 > len(data):
            raise truncated(_FORMAT)
        (length,) = struct.unpack_from(">H", data, begin)  # it counts itself
        end = begin + length
        if length < 2 or end > len(data):
            raise truncated(_FORMAT)
        content = view[begin + 2 : end]
        if marker in _HUFFMAN_FRAMES or marker in _ARITHMETIC_FRAMES:
            frames += 1
            blocks = _blocks(content)
            least = blocks // 8 if marker in _HUFFMAN_FRAMES else 0  # bytes: a block has one bit or more
        elif marker in _OTHER_FRAMES:
            raise damaged(_FORMAT, "it is lossless or hierarchical, which is not taken")
        elif marker == _SCAN:
            scans += 1
            following = _next_marker(data, end)
            if following is None:
                raise truncated(_FORMAT)
            coded += following.start() - end
            end = following.start()
        elif marker == _APP1 and not metadata and content[: len(exif.PREFIX)] == exif.PREFIX:
            metadata = bytes(content)
        if frames > 1 or scans > _MAX_SCANS or (scans and not frames):
            raise damaged(_FORMAT, f"it has {frames} frames and {scans} scans; 1 and up to {_MAX_SCANS} are taken")
        if marker in (*_HUFFMAN_FRAMES, *_ARITHMETIC_FRAMES, *_TABLES, _SCAN, _APP0, _APP14):
            kept.append(view[begin - 2 : end])
        begin = end
    raise damaged(_FORMAT, f"it has more than {MAX_PARTS:,} segments")


def _next_marker(data: bytes, begin: int) -> re.Match[bytes] | None:
    for start in range(begin, len(data), _WINDOW):
        found = _MARKER.search(data, start, start + _WINDOW + 1)  # it may lie across the end
        if found is not None:
            return found
    return None


def _blocks(content: memoryview) -> int:
    """How many blocks of 8x8 the components have together, of a frame that is allowed."""
    if len(content) < 6 or len(content) != 6 + 3 * content[5]:
        raise damaged(_FORMAT, "its frame header has a wrong length")
    bits, height, width, components = struct.unpack_from(">BHHB", content)
    if bits != 8 or components not in (1, 3, 4):
        raise damaged(_FORMAT, f"{bits} bits and {components} components are not taken; 8 bits and 1, 3 or 4 are")
    if not width or not height:
        raise damaged(_FORMAT, f"it has {width}x{height} pixels")
    check_size(width, height)
    factors = [divmod(content[7 + 3 * component], 16) for component in range(components)]  # across, down
    if not all(1 <= factor <= 4 for pair in factors for factor in pair):
        raise damaged(_FORMAT, "its sampling factors are not 1 to 4")
    most_across, most_down = (max(side) for side in zip(*factors, strict=True))
    return sum(
        (width * across // most_across // 8) * (height * down // most_down // 8)  # rounded down: a lower bound
        for across, down in factors
    )
