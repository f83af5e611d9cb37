"""Given files to pixels. Knows formats, nothing of requests; runs in worker threads, never on the event loop."""

from server.engines.port import Array


class BadImage(ValueError):
    """The bytes are no picture that is taken; the text says what was given and what is allowed."""


def decode(data: bytes) -> Array:
    """height width 3, uint8, RGB, upright; what is transparent lies on white. Raises `BadImage`."""
    raise NotImplementedError


def decode_mask(data: bytes) -> Array:
    """height width, uint8, luminance, upright; what is transparent lies on black. Raises `BadImage`."""
    raise NotImplementedError
