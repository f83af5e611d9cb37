"""Files that others can read, with the parameters in them."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from server.pictures import JPEG, PNG

PARAMETERS = '{"prompt": "ein rotes Häuschen — 家"}'


def pixels(height: int, width: int) -> np.ndarray:
    random = np.random.RandomState(0)
    smooth = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    return np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (64, 192), (1, 1), (3, 7)])
def test_a_png_gives_back_every_pixel_and_the_parameters(height: int, width: int) -> None:
    original = pixels(height, width)
    image = Image.open(BytesIO(PNG.encode(original, PARAMETERS)))
    image.load()
    assert (image.format, image.mode) == ("PNG", "RGB")
    assert np.array_equal(np.asarray(image), original)
    assert image.text == {"parameters": PARAMETERS}


def test_a_png_passes_the_checks_of_a_strict_reader() -> None:
    Image.open(BytesIO(PNG.encode(pixels(64, 64), PARAMETERS))).verify()  # every chunk's checksum


def test_a_jpeg_is_close_and_carries_the_parameters() -> None:
    original = pixels(128, 64)
    image = Image.open(BytesIO(JPEG.encode(original, PARAMETERS)))
    assert image.format == "JPEG"
    assert np.abs(np.asarray(image).astype(int) - original).mean() < 4
    assert image.info["comment"].decode() == PARAMETERS


def test_a_text_longer_than_a_jpeg_segment_is_kept_whole() -> None:
    longest = "".join(chr(0x1F300 + index % 700) for index in range(20_000))  # two prompts of four-byte characters
    file = JPEG.encode(pixels(64, 64), longest)
    with Image.open(BytesIO(file)) as image:
        image.load()
        assert b"".join(data for marker, data in image.applist if marker == "COM").decode() == longest
