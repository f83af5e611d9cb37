"""IP-Adapters against diffusers' `load_ip_adapter`: same seed, same latents, same pixels, the picture's way through
CLIP's preprocessing, its tower and the projection included.

Random weights in the real topology; torch's modules behind the engine port, which the exporter shows its graphs equal
to.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from parity import tiny_adapters
from parity.test_img2img import LATENTS_TOLERANCE, mask, picture, relative
from parity.tiny_adapters import IMAGE_SIDE, SIZE, Subject, assert_equal, drawn, plan_of, scheduler, taken
from PIL import Image

from server.adapters.ip_adapter import ImagePrompt, NoImagePrompt, latent_mask
from server.canvas import FromNoise, FromPicture, from_picture, painted_at
from server.clip import normalised
from server.plan import Plan

BOTH = pytest.mark.parametrize("adapted", ["sd15", "sdxl"], indirect=True, scope="session")


def shown() -> np.ndarray:
    """height width 3, uint8: of no side that CLIP has, so that it is resized and cut."""
    return picture()[:150, :, ::-1]


def prompted(made: Plan, **fields: Any) -> Plan:
    everywhere = np.ones((SIZE.height, SIZE.width), bool)
    prompt = ImagePrompt(
        pixel_values=normalised(shown(), IMAGE_SIDE),
        mask=latent_mask(everywhere, made.engine.card.pixels_per_latent),
        method="full",
        scale=1.0,
        projection="linear",
    )
    return dataclasses.replace(made, image_prompt=dataclasses.replace(prompt, **fields))


def part(made: Plan) -> np.ndarray:
    """Where it applies: some latent pixels in part."""
    return latent_mask(painted_at(mask(), SIZE), made.engine.card.pixels_per_latent)


def _scale(subject: Subject, prompt: ImagePrompt) -> Any:
    """As diffusers is told of the blocks that a method drives."""
    scale = prompt.scale
    last = [0.0, scale] + [0.0] * (subject.kind.unet["layers_per_block"] - 1)  # of an upper block's attentions
    methods: Mapping[str, Mapping[str, Any]] = {
        "sd15": {
            "full": scale,
            "style": {"up": {"block_1": scale}},
            "composition": {"down": {"block_2": scale}, "mid": scale},
        },
        "sdxl": {
            "full": scale,
            "style": {"up": {"block_0": last}},
            "composition": {"down": {"block_2": [0.0, scale]}},
        },
    }
    return methods[subject.engine.card.family][prompt.method]


def theirs(subject: Subject, made: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The same from diffusers."""
    prompt = made.image_prompt
    assert isinstance(prompt, ImagePrompt)
    match made.start:
        case FromPicture(pixels=pixels):
            of, start = subject.kind.plain_img2img, {"image": Image.fromarray(pixels)}
        case _:
            of, start = subject.kind.plain, {}
    pipeline = subject.pipeline(of, scheduler(made))
    file = {kind: dict(tensors) for kind, tensors in subject.ip_adapters[prompt.projection].items()}
    pipeline.load_ip_adapter(file, subfolder=None, weight_name=None, image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(_scale(subject, prompt))
    masks = [torch.from_numpy(prompt.mask)[None, None]]
    told = {"ip_adapter_image": Image.fromarray(shown()), "cross_attention_kwargs": {"ip_adapter_masks": masks}}
    return taken(pipeline, {**tiny_adapters.said(made), **start, **told})


# Sampler, guidance, fields of the prompt, whether only a part of the picture is prompted
CASES: Mapping[str, tuple[str, float, Mapping[str, Any], bool]] = {
    "full": ("DDIM", 2.0, {}, False),
    "unguided": ("DDIM", 1.0, {"scale": 0.5}, False),
    "style": ("HEUN", 2.0, {"method": "style"}, False),
    "composition": ("DDIM", 2.0, {"method": "composition", "scale": 0.7}, False),
    "masked": ("DPM_SOLVER_MULTISTEP", 2.0, {}, True),
    "plus": ("DDIM", 2.0, {"projection": "plus"}, True),
    "plus-unguided": ("DDIM", 1.0, {"projection": "plus"}, False),
}
QUICK = {("text", "style"), ("text", "composition"), ("text", "masked"), ("text", "plus"), ("picture", "unguided")}


def _cases() -> Iterator[Any]:
    """All of them; those that a quick run leaves out are marked (`make parity` runs all)."""
    for start, case in itertools.product(("text", "picture"), CASES):
        marks = () if (start, case) in QUICK else (pytest.mark.thorough,)
        yield pytest.param(start, *CASES[case], marks=marks, id=f"{start}-{case}")


@BOTH
@pytest.mark.parametrize(("start", "sampler", "guidance", "fields", "partly"), list(_cases()))
async def test_a_picture_and_a_seed_give_the_picture_that_diffusers_gives(
    adapted: Subject, start: str, sampler: str, guidance: float, fields: Any, partly: bool
) -> None:
    made = plan_of(adapted, sampler, guidance)
    begin, strength = (FromNoise(), 1.0) if start == "text" else (from_picture(picture(), SIZE), 0.8)
    made = prompted(dataclasses.replace(made, start=begin, strength=strength), **fields)
    if partly:
        made = prompted(made, **fields, mask=part(made))
    assert_equal(await drawn(adapted, made), theirs(adapted, made))


@BOTH
async def test_at_scale_0_the_picture_is_that_of_the_texts_alone(adapted: Subject) -> None:
    made = prompted(plan_of(adapted, "DDIM", 2.0), scale=0.0)
    without, _ = await drawn(adapted, dataclasses.replace(made, image_prompt=NoImagePrompt()))
    latents, _ = await drawn(adapted, made)
    assert relative(latents, without) < 1e-5


@pytest.mark.parametrize("adapted", ["sd15"], indirect=True, scope="session")
@pytest.mark.parametrize(
    "other",
    [
        {"scale": 0.8},
        {"method": "style"},
        {"method": "composition"},
        {"projection": "plus"},
        {"pixel_values": normalised(shown()[::-1], IMAGE_SIDE)},
        {"mask": np.zeros((SIZE.height // 8, SIZE.width // 8), np.float32)},
    ],
    ids=lambda fields: "-".join(fields),
)
async def test_another_picture_scale_method_or_mask_shows_by_far_more_than_the_tolerance(
    adapted: Subject, other: Any
) -> None:
    """The comparisons above can fail."""
    made = plan_of(adapted, "DDIM", 2.0)
    latents, _ = await drawn(adapted, prompted(made, **other))
    reference, _ = await drawn(adapted, prompted(made))
    assert relative(latents, reference) > 5 * LATENTS_TOLERANCE
