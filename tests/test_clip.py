"""What CLIP's tower is shown: as transformers shows it, and at a bounded cost."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from server.clip import normalised

STEP = 1 / 255 / 0.26  # of a value of 0..255, where the deviation is smallest


def noise(width: int, height: int) -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    coarse = Image.fromarray(noise(max(width // 16, 1), max(height // 16, 1)))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))


def difference(pixels: np.ndarray) -> float:
    expected = CLIPImageProcessorPil()(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    return float(np.abs(normalised(pixels, 224) - expected).max())


@pytest.mark.parametrize("size", [(224, 224), (512, 512), (64, 48), (1216, 704), (641, 1537), (37, 148), (400, 1600)])
def test_a_picture_is_seen_as_transformers_shows_it(size: tuple[int, int]) -> None:
    assert difference(noise(*size)) < 1e-5


@pytest.mark.parametrize("size", [(1000, 37), (37, 1000), (900, 5), (5, 900), (1601, 400), (64, 300)])
def test_the_middle_of_a_thin_picture_is_seen_as_transformers_shows_it_but_for_rounding(size: tuple[int, int]) -> None:
    assert difference(smooth(*size)) < 2.01 * STEP


THIN = f"""
import resource
import numpy as np
from server.clip import normalised
resource.setrlimit(resource.RLIMIT_AS, ({3 * 2**29},) * 2)  # bytes, those of libraries among them
for shape in ((1, 16384, 3), (16384, 1, 3)):
    assert normalised(np.full(shape, 9, np.uint8), 224).shape == (3, 224, 224)
"""


def test_a_very_thin_picture_costs_no_more_than_others() -> None:
    subprocess.run([sys.executable, "-c", THIN], check=True, timeout=60, env={"OPENBLAS_NUM_THREADS": "1"})
