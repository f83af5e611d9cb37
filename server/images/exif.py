"""EXIF's orientation, and nothing else of it. Sources: EXIF 2.32, 4.6.2; TIFF 6.0."""

import struct

PREFIX = b"Exif\0\0"
UPRIGHT = 1
_ORIENTATION, _SHORT = 0x0112, 3
_MAX_ENTRIES = 512  # they are in the order of their tags, and this one has a low number
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def orientation(data: bytes) -> int:
    """1..8, of an EXIF block with or without its prefix. Upright where it does not say or cannot be read: a picture is
    worth more than its metadata."""
    tiff = data.removeprefix(PREFIX)
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(min(entries, _MAX_ENTRIES)):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # it points outside of itself
        pass
    return UPRIGHT
