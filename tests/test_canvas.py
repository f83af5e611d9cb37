"""Pixels before and after the engines, against diffusers' own functions where it has them."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from server.canvas import (
    Box,
    FromPicture,
    Inpainting,
    NothingToPaint,
    continued,
    crop_box,
    from_picture,
    inpainting,
    latent_mask,
    painted_at,
    paste,
    whole,
)

SIZE = (96, 64)  # width, height
PIXELS_PER_LATENT = 8
CASES = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """height width 3, uint8: slopes with some grain."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    slopes = np.stack((200 * x + 20, 180 * y + 30, 120 * (1 - x) * y + 60), axis=2)
    grain = np.random.RandomState(seed).normal(0, 3, slopes.shape)
    return (slopes + grain).round().clip(0, 255).astype(np.uint8)


def box_mask(width: int, height: int, box: Box) -> np.ndarray:
    """height width, uint8, white within the box."""
    mask = np.zeros((height, width), np.uint8)
    mask[box.top : box.bottom, box.left : box.right] = 255
    return mask


@st.composite
def masks(draw: st.DrawFn, width: int = SIZE[0], height: int = SIZE[1]) -> np.ndarray:
    """height width, uint8: one or two boxes of any size, from a pixel to all of it, edges included."""
    mask = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(1, 2))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        mask |= box_mask(width, height, Box(left, top, right, bottom))
    return mask


def plain(image: np.ndarray, mask: np.ndarray) -> Inpainting:
    return inpainting(image, mask, SIZE, whole(SIZE))


def close(image: np.ndarray, mask: np.ndarray, padding: int) -> Inpainting:
    """Only the mask's surroundings are seen."""
    return inpainting(image, mask, SIZE, crop_box(painted_at(mask, SIZE), padding))


def outpainted(image: np.ndarray, mask: np.ndarray, box: Box) -> Inpainting:
    return inpainting(continued(image, mask, SIZE), mask, SIZE, box)


# Against diffusers


@pytest.mark.parametrize("given_size", [SIZE, (300, 200), (50, 90), (1, 1), (96, 65)])
def test_a_picture_is_resized_as_diffusers_does(given_size: tuple[int, int]) -> None:
    image = scene(*given_size)
    reference = VaeImageProcessor(do_normalize=False).preprocess(Image.fromarray(image), height=64, width=96)[0]
    found = from_picture(image, SIZE)
    assert isinstance(found, FromPicture)
    assert np.array_equal(found.pixels, (reference.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8))


@pytest.mark.parametrize("given_size", [SIZE, (300, 200), (50, 90)])
def test_a_mask_is_binarised_as_diffusers_does(given_size: tuple[int, int]) -> None:
    mask = np.random.RandomState(1).randint(0, 256, (given_size[1], given_size[0])).astype(np.uint8)
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    reference = processor.preprocess(Image.fromarray(mask), height=64, width=96)[0, 0].numpy() > 0
    assert np.array_equal(plain(scene(*SIZE), mask).mask, reference)


@CASES
@given(masks(), st.integers(0, 120))
def test_the_crop_is_that_of_diffusers(mask: np.ndarray, padding: int) -> None:
    box = VaeImageProcessor.get_crop_region(Image.fromarray(mask), *SIZE, pad=padding)
    assert crop_box(mask > 0, padding) == box


@CASES
@given(masks())
def test_a_latent_takes_the_mask_that_torch_gives_it(mask: np.ndarray) -> None:
    size = (SIZE[1] // PIXELS_PER_LATENT, SIZE[0] // PIXELS_PER_LATENT)
    reference = torch.nn.functional.interpolate(torch.from_numpy(mask > 0)[None, None].float(), size=size)[0].numpy()
    assume(reference.any())
    found = latent_mask(mask > 0, PIXELS_PER_LATENT)
    assert found.dtype == np.float32
    assert np.array_equal(found, reference)


@CASES
@given(masks(), st.integers(0, 40))
def test_a_crop_is_cut_and_enlarged_as_in_diffusers_but_from_the_picture_as_it_was_given(
    mask: np.ndarray, padding: int
) -> None:
    image = scene(*SIZE)
    found = close(image, mask, padding)
    reference = Image.fromarray(image).crop(found.box).resize(SIZE, Image.Resampling.LANCZOS)
    assert np.abs(found.pixels.astype(int) - np.asarray(reference)).mean() < 2  # at its edges ours sees what is beyond
    twice = close(scene(2 * SIZE[0], 2 * SIZE[1]), mask, padding)
    assert twice.box == found.box


# Masks


def test_a_mask_without_anything_to_paint_is_refused() -> None:
    for mask in (np.zeros((64, 96), np.uint8), np.full((64, 96), 127, np.uint8)):
        with pytest.raises(NothingToPaint, match="black everywhere"):
            plain(scene(*SIZE), mask)
    speck = box_mask(4_000, 4_000, Box(7, 7, 8, 8))
    with pytest.raises(NothingToPaint):
        plain(scene(*SIZE), speck)


@CASES
@given(masks())
def test_every_mask_marks_some_latent(mask: np.ndarray) -> None:
    marked = latent_mask(mask > 0, PIXELS_PER_LATENT)
    assert marked.any()
    assert marked.shape == (1, SIZE[1] // PIXELS_PER_LATENT, SIZE[0] // PIXELS_PER_LATENT)


def test_a_mask_too_thin_for_every_latent_marks_those_it_touches() -> None:
    thin = box_mask(*SIZE, Box(9, 17, 40, 19)) > 0
    assert np.argwhere(latent_mask(thin, PIXELS_PER_LATENT)[0]).tolist() == [[2, 1], [2, 2], [2, 3], [2, 4]]


# Crops


@CASES
@given(masks(), st.integers(0, 2**31 - 1))
def test_a_crop_lies_inside_the_picture_holds_the_mask_and_has_its_shape(mask: np.ndarray, padding: int) -> None:
    box = crop_box(mask > 0, padding)
    assert 0 <= box.left < box.right <= SIZE[0]
    assert 0 <= box.top < box.bottom <= SIZE[1]
    assert not (mask & ~box_mask(*SIZE, box)).any()
    assert abs((box.right - box.left) / SIZE[0] - (box.bottom - box.top) / SIZE[1]) < 1.5 / min(SIZE)
    assert close(scene(*SIZE), mask, padding).mask.any()


def test_a_small_mask_is_seen_in_the_detail_that_was_given() -> None:
    fine = np.indices((640, 960)).sum(axis=0) % 16 < 8  # stripes that the requested size cannot hold
    image = np.repeat(np.where(fine, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    mask = box_mask(960, 640, Box(400, 300, 440, 330))
    assert plain(image, mask).pixels.std() < 60
    assert close(image, mask, 0).pixels.std() > 100


# Pasting


@CASES
@given(masks(), st.sampled_from([None, 0, 5, 32]), st.booleans())
def test_what_is_not_painted_comes_back_byte_by_byte(mask: np.ndarray, padding: int | None, outpainting: bool) -> None:
    image = scene(*SIZE)
    box = whole(SIZE) if padding is None else crop_box(mask > 0, padding)
    begin = outpainted(image, mask, box) if outpainting else inpainting(image, mask, SIZE, box)
    painted = scene(*SIZE, seed=5)[::-1]
    result = paste(painted, begin)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    assert np.array_equal(result[mask == 0], image[mask == 0])
    assert not np.shares_memory(result, begin.canvas)


def test_where_the_mask_is_all_white_the_picture_is_the_painted_one() -> None:
    painted = scene(*SIZE, seed=5)[::-1]
    whole = plain(scene(*SIZE), np.full((64, 96), 255, np.uint8))
    assert np.array_equal(paste(painted, whole), painted)


def test_a_crop_is_pasted_back_where_it_was_taken_from() -> None:
    image = scene(*SIZE)
    mask = box_mask(*SIZE, Box(30, 20, 50, 34))
    crop = close(image, mask, 4)
    assert crop.box != Box(0, 0, *SIZE)
    back = paste(crop.pixels, crop)  # nothing painted: enlarged and made small again
    assert np.abs(back.astype(int) - image).max() <= 12
    red = paste(np.full((64, 96, 3), (255, 0, 0), np.uint8), crop)
    assert (red[mask > 0] == (255, 0, 0)).all()


def test_the_autoencoders_shade_beside_the_mask_is_taken_off_within() -> None:
    image = scene(*SIZE)
    mask = box_mask(*SIZE, Box(30, 20, 60, 50))
    shaded = (image + np.array((9, -6, 4))).clip(0, 255).astype(np.uint8)
    assert np.abs(paste(shaded, plain(image, mask)).astype(int) - image).max() <= 1


def test_something_new_beside_the_mask_is_not_taken_for_an_error() -> None:
    image = np.full((64, 96, 3), 40, np.uint8)
    mask = box_mask(*SIZE, Box(30, 20, 60, 50))
    house = np.full((64, 96, 3), 200, np.uint8)  # reaches beyond the mask
    assert (paste(house, plain(image, mask))[mask > 0] == 200).all()


# Outpainting


def test_unknown_areas_continue_the_known_ones_and_hide_what_was_there() -> None:
    image = scene(*SIZE)
    mask = box_mask(*SIZE, Box(0, 0, 96, 64)) ^ box_mask(*SIZE, Box(24, 0, 72, 64))
    pictures = []
    for rubbish in (0, 255):
        covered = np.where(mask[..., None] > 0, rubbish, image).astype(np.uint8)
        pictures.append(outpainted(covered, mask, whole(SIZE)).pixels)
    assert np.array_equal(*pictures)
    (found, _) = pictures
    assert np.array_equal(found[mask == 0], image[mask == 0])
    for inside, outside in ((23, 24), (72, 71)):
        step = found[:, inside].astype(float).mean(axis=0) - image[:, outside].astype(float).mean(axis=0)
        assert np.abs(step).max() < 6  # of 255: two columns' slope, and what is left of the grain
    assert found[mask > 0].std(axis=0).min() > 5  # not one colour
    assert np.array_equal(continued(image, mask, SIZE), continued(image, mask, SIZE))  # one request, one picture


def test_a_border_lends_nothing_of_its_colour_when_the_picture_is_resized() -> None:
    image = np.full((210, 310, 3), 200, np.uint8)
    mask = box_mask(310, 210, Box(0, 0, 310, 210)) ^ box_mask(310, 210, Box(101, 33, 207, 171))
    image[mask > 0] = 0
    found = outpainted(image, mask, whole(SIZE))
    assert np.abs(found.canvas[~found.canvas_mask].astype(int) - 200).max() <= 3  # of eight bits, twice
    assert found.canvas[found.canvas_mask].mean() > 190


def test_a_canvas_without_anything_known_is_filled_all_the_same() -> None:
    everything = np.full((64, 96), 255, np.uint8)
    found = outpainted(scene(*SIZE), everything, whole(SIZE))
    assert found.mask.all()
    assert found.pixels.shape == (64, 96, 3)


@CASES
@given(masks(), st.sampled_from([None, 0, 32]))
def test_outpainting_takes_any_mask(mask: np.ndarray, padding: int | None) -> None:
    image = scene(*SIZE)
    found = outpainted(image, mask, whole(SIZE) if padding is None else crop_box(mask > 0, padding))
    assert np.array_equal(found.canvas[mask == 0], image[mask == 0])
    assert (found.pixels.shape, found.pixels.dtype, found.mask.dtype) == ((64, 96, 3), np.uint8, np.bool_)
