"""Given files to pixels. Knows formats, nothing of requests."""

from server.images.header import BadImage
from server.images.reading import decode, decode_mask

__all__ = ["BadImage", "decode", "decode_mask"]
