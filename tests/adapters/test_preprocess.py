"""Control maps against what their definitions give: OpenCV called plainly, blurs of SciPy's, diffusers' recipe."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from server.adapters.control import Control, preprocessor
from server.adapters.preprocess import PREPROCESSORS, control_map, mapped, mapper
from server.assets import rules
from server.engines.port import Array, Spec, Tensors

HEIGHT, WIDTH = 48, 64
NOWHERE = np.zeros((HEIGHT, WIDTH), bool)


@pytest.fixture(scope="module")
def picture() -> Array:
    """A disc, a box, a thin dark line and a gradient, with some noise."""
    down, across = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    pixels = np.stack([120 + across, 200 - down, np.full_like(down, 180)], axis=2)
    pixels[(down - 20) ** 2 + (across - 20) ** 2 < 100] = (200, 40, 30)
    pixels[30:44, 36:60] = (20, 60, 160)
    pixels[8:10, 30:60] = (60, 50, 40)
    pixels += np.random.RandomState(3).normal(0, 4, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def blurred(picture: Array, sigma: float) -> Array:
    """As OpenCV's of floats: four deviations to each side, mirrored at the edge."""
    channels = [gaussian_filter(channel.astype(np.float64), sigma, mode="mirror", truncate=4) for channel in picture.T]
    return np.stack(channels).T


def grey(made: Array) -> Array:
    """The one channel of a grey map whose pixels are all told."""
    assert made.shape == (HEIGHT, WIDTH, 4)
    assert made.dtype == np.uint8
    assert (made[..., 3] == 255).all()
    assert (made[..., :3] == made[..., :1]).all()
    return made[..., 0]


def test_canny_is_opencvs_with_the_documented_thresholds(picture: Array) -> None:
    edges = grey(control_map(picture, NOWHERE, "canny"))
    assert np.array_equal(edges, cv2.Canny(picture, 100, 200))
    assert set(np.unique(edges)) == {0, 255}
    assert not np.array_equal(edges, cv2.Canny(picture, 20, 60))
    assert 0.02 < (edges > 0).mean() < 0.3


def test_canny_takes_a_picture_that_is_a_part_of_another(picture: Array) -> None:
    turned = np.broadcast_to(picture[:, :, :1], picture.shape)
    assert np.array_equal(grey(control_map(turned, NOWHERE, "canny")), cv2.Canny(turned.copy(), 100, 200))


def test_a_scribble_is_where_the_difference_of_two_blurs_is_dark_in_every_channel(picture: Array) -> None:
    drawn = grey(control_map(picture, NOWHERE, "scribble"))
    darker = (blurred(picture, 5.0) - blurred(picture, 0.5)).min(axis=2)
    light = (255 - darker).clip(0, 255).astype(np.uint8).astype(int)
    expected = np.where(2 * (255 - light) > 32, 255, 0)
    assert (drawn != expected).mean() < 0.001  # a rounding next to the threshold
    assert 0.005 < (drawn > 0).mean() < 0.5


def test_a_scribble_has_the_darkest_lines(picture: Array) -> None:
    lined = np.full_like(picture, 255)
    lined[:, 30:33] = 0
    assert (grey(control_map(lined, NOWHERE, "scribble"))[:, 31] == 255).all()


def test_line_art_is_how_much_darker_a_pixel_is_than_around_it(picture: Array) -> None:
    drawn = grey(control_map(picture, NOWHERE, "lineart"))
    darker = (blurred(picture, 6.0) - picture).min(axis=2).clip(0, 255)
    expected = (darker / max(16, np.median(darker[darker > 8])) * 127).clip(0, 255)
    assert np.abs(drawn - expected).max() <= 1.01
    assert drawn.max() > 127


def test_line_art_of_a_picture_without_lines_is_black() -> None:
    even = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    assert not grey(control_map(even, NOWHERE, "lineart")).any()


@pytest.mark.parametrize("name", ["tile", "ip2p"])
def test_what_is_told_the_picture_gets_it_as_it_is(picture: Array, name: str) -> None:
    made = control_map(picture, ~NOWHERE, name)
    assert np.array_equal(made[..., :3], picture)
    assert (made[..., 3] == 255).all()


def test_inpaint_reads_as_diffusers_recipe_has_it(picture: Array) -> None:
    mask = NOWHERE.copy()
    mask[10:30, 5:40] = True
    made = control_map(picture, mask, "inpaint")
    recipe = picture.astype(np.float32) / 255
    recipe[mask.astype(np.float32) > 0.5] = -1
    read = np.where(made[..., 3:] == 0, np.float32(-1), made[..., :3].astype(np.float32) / 255)
    assert np.array_equal(read, recipe)
    assert set(np.unique(made[..., 3])) == {0, 255}


@pytest.mark.parametrize("name", PREPROCESSORS)
async def test_a_map_that_is_made_here_needs_no_engine(picture: Array, name: str) -> None:
    async def run(spec: Spec, inputs: Tensors) -> Tensors:
        raise AssertionError(spec.name)

    control = Control(picture, NOWHERE, name, 1.0, 1.0)
    assert mapper(control) == ()
    assert np.array_equal(await mapped(control, run), control_map(picture, NOWHERE, name))


async def test_a_picture_that_is_the_map_is_taken_as_it_is(picture: Array) -> None:
    async def run(spec: Spec, inputs: Tensors) -> Tensors:
        raise AssertionError(spec.name)

    control = Control(picture, ~NOWHERE, "", 1.0, 1.0)
    assert mapper(control) == ()
    made = await mapped(control, run)
    assert np.array_equal(made[..., :3], picture)
    assert (made[..., 3] == 255).all()


async def test_any_other_map_is_made_by_the_deployments_engine(picture: Array) -> None:
    async def run(spec: Spec, inputs: Tensors) -> Tensors:
        spec.check(inputs)
        assert spec.name == "preprocessor_depth"
        return {"map": 255 - inputs["pixels"]}

    control = Control(picture, NOWHERE, "depth", 1.0, 1.0)
    assert mapper(control) == (preprocessor("depth"),)
    made = await mapped(control, run)
    assert np.array_equal(made[..., :3], 255 - picture)
    assert (made[..., 3] == 255).all()


def test_every_map_that_is_made_here_may_be_named_when_a_controlnet_is_brought() -> None:
    assert set(PREPROCESSORS) <= set(rules.PREPROCESSORS)
