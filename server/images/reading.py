"""A given file's bytes to its pixels. Runs in worker threads, never on the event loop; who calls it bounds how many at
a time: the largest file takes half a gigabyte, a WebP 0.8.

A file is read twice: first by ourselves, without decoding anything (`png.py`, `jpeg.py`, `webp.py`), which settles
format, size, completeness and orientation and leaves nothing in the file but what its pixels need; then by Pillow. So
no file is decoded that is too large or broken in its structure, and no text, profile, preview or further frame is ever
unpacked. Colour profiles are among what is left out: pixels are taken for sRGB.
"""

from io import BytesIO

import numpy as np
from PIL import Image as PillowImage

from server.engines.port import Array
from server.images import jpeg, png, webp
from server.images.header import ALLOWED, MAX_BYTES, BadImage, Header, damaged

_BLACK, _WHITE = 0, 255
_READERS = {png.SIGNATURE: png.read, jpeg.SIGNATURE: jpeg.read, webp.SIGNATURE: webp.read}
_OTHERS = {  # told by name, for the sake of who sent it
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"PK\3\4": "a ZIP",
    b"<": "XML, SVG or HTML",
    b"data:": "a data URL",
    b"http": "a web address",
}
_TURNS = {  # what makes a picture upright, by EXIF's orientation
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}


def decode(data: bytes) -> Array:
    """height width 3, uint8, RGB, upright; what is transparent lies on white. Raises `BadImage`."""
    return np.asarray(_flat(data, _WHITE))


def decode_mask(data: bytes) -> Array:
    """height width, uint8, luminance, upright; what is transparent lies on black. Raises `BadImage`."""
    return np.asarray(_flat(data, _BLACK).convert("L"))


def _flat(data: bytes, background: int) -> PillowImage.Image:
    """RGB, upright."""
    header = _header(data)
    image = _loaded(header)
    if image.mode == "I;16":
        image = _eight_bit(image)
    if image.has_transparency_data:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        below = PillowImage.new("RGB", image.size, (background,) * 3)
        below.paste(image, mask=image.getchannel("A"))
        image = below
    if image.mode != "RGB":  # the largest pictures are not copied once more
        image = image.convert("RGB")
    turn = _TURNS.get(header.orientation)
    return image if turn is None else image.transpose(turn)


def _header(data: bytes) -> Header:
    if not data:
        raise BadImage(f"the file is empty; {ALLOWED}")
    if len(data) > MAX_BYTES:
        raise BadImage(f"the file has {len(data):,} bytes; {ALLOWED}")
    for signature, read in _READERS.items():
        if data.startswith(signature):
            return read(data)
    kind = next((name for begin, name in _OTHERS.items() if data.startswith(begin)), "no picture that is known here")
    raise BadImage(f"the file is {kind}; {ALLOWED}")


def _loaded(header: Header) -> PillowImage.Image:
    try:
        image = PillowImage.open(BytesIO(header.data), formats=(header.format,))
        image.load()
    except (OSError, EOFError, SyntaxError, ValueError) as fault:  # all that Pillow's readers raise for a broken file
        raise damaged(header.format, "its pixels cannot be read") from fault
    return image.copy()  # without the reader: WebP's keeps 8 bytes a pixel


def _eight_bit(image: PillowImage.Image) -> PillowImage.Image:
    """Of 16-bit greys the high byte, as Pillow takes it of 16-bit colours; it would clip greys instead."""
    greys = np.asarray(image)
    eight = PillowImage.fromarray((greys >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        eight.putalpha(PillowImage.fromarray((greys != transparent).astype(np.uint8) * np.uint8(255)))
    return eight
