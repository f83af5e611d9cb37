"""What a given file says of itself before anything in it is decoded, and what is allowed there."""

from dataclasses import dataclass
from typing import Literal

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 50_000_000  # of a telephone's camera; 150 MB once decoded
MAX_SIDE = 16_384  # Pillow's resizing takes memory by the ratio of the sides, not by the pixels
MAX_PARTS = 20_000  # chunks or segments: a PNG of the largest size has 4,000 as they are usually written
ALLOWED = (
    f"allowed are PNG, JPEG and WebP files of at most {MAX_BYTES // 2**20} MiB, "
    f"{MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE:,} pixels a side"
)

Format = Literal["PNG", "JPEG", "WEBP"]


class BadImage(ValueError):
    """The bytes are no picture that is taken; the text says what was given and what is allowed."""


@dataclass(frozen=True)
class Header:
    """A picture that is allowed and, as far as its structure tells, whole."""

    format: Format
    orientation: int  # EXIF's, 1..8: which way is up
    data: bytes  # the file with nothing in it but what its pixels need


def damaged(format: Format, what: str) -> BadImage:
    return BadImage(f"the {format} file is damaged: {what}; {ALLOWED}")


def truncated(format: Format) -> BadImage:
    return damaged(format, "it ends too early")


def check_size(width: int, height: int) -> None:
    """Raises `BadImage`."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImage(f"the picture has {width}x{height} pixels; {ALLOWED}")
