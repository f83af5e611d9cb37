"""ControlNets against diffusers' pipelines with one: same seed, same latents, same pixels.

Random weights in the real topology, the inpainting networks of nine channels too; torch's modules behind the engine
port, which the exporter shows its graphs equal to.
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
from parity.tiny_adapters import SIZE, Subject, assert_equal, drawn, plan_of, scheduler, taken
from PIL import Image

from server.adapters.control import Control, NoControl
from server.canvas import FromNoise, FromPicture, Inpainting, from_picture, inpainting, whole
from server.plan import Plan

BOTH = pytest.mark.parametrize("adapted", ["sd15", "sdxl"], indirect=True, scope="session")
STARTS: Mapping[str, FromNoise | FromPicture | Inpainting] = {
    "text": FromNoise(),
    "picture": from_picture(picture(), SIZE),
    "inpainting": inpainting(picture(), mask(), SIZE, whole(SIZE)),
}


def map_of_edges() -> np.ndarray:
    """height width 3, uint8: bars in white."""
    edges = np.zeros((SIZE.height, SIZE.width, 3), np.uint8)
    edges[10:100:30] = edges[:, 20:150:40] = 255
    return edges


def controlled(made: Plan, start: str = "text", **fields: Any) -> Plan:
    nowhere = np.zeros((SIZE.height, SIZE.width), bool)
    control = Control(map_of_edges(), nowhere, preprocessor="", scale=1.0, early_stop=1.0)
    control = dataclasses.replace(control, **fields)
    return dataclasses.replace(made, start=STARTS[start], strength=1.0 if start == "text" else 0.8, control=control)


def theirs(subject: Subject, made: Plan, shown: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The same from diffusers; `shown` is what it is given for a map where that is no picture."""
    control = made.control
    assert isinstance(control, Control)
    kind, given = subject.kind, Image.fromarray(control.picture) if shown is None else shown
    said = {
        "controlnet_conditioning_scale": control.scale,
        "control_guidance_end": control.early_stop,
        **tiny_adapters.said(made),
    }
    match made.start:
        case FromNoise():
            of, said = kind.control, {**said, "image": given}
        case FromPicture(pixels=pixels):
            of, said = kind.control_img2img, {**said, "image": Image.fromarray(pixels), "control_image": given}
        case Inpainting(pixels=pixels, mask=painted):
            mask = Image.fromarray(painted.astype(np.uint8) * 255)
            said |= {"image": Image.fromarray(pixels), "mask_image": mask, "control_image": given}
            of = kind.control_inpaint
    pipeline = subject.pipeline(of, scheduler(made), controlnet=subject.controlnet)
    return taken(pipeline, said)


CASES: Mapping[str, tuple[str, float, Mapping[str, float]]] = {  # sampler, guidance, fields of the control
    "plain": ("DDIM", 2.0, {}),
    "unguided": ("DDIM", 1.0, {"scale": 0.5}),
    "ending": ("DPM_SOLVER_MULTISTEP", 2.0, {"early_stop": 0.5}),
    "second-order": ("HEUN", 2.0, {"scale": 2.0, "early_stop": 0.4}),  # its end is counted in evaluations, two a step
}
QUICK = {("text", "second-order"), ("picture", "unguided"), ("inpainting", "ending")}


def _cases() -> Iterator[Any]:
    """All of them; those that a quick run leaves out are marked (`make parity` runs all)."""
    for start, case in itertools.product(STARTS, CASES):
        marks = () if (start, case) in QUICK else (pytest.mark.thorough,)
        yield pytest.param(start, *CASES[case], marks=marks, id=f"{start}-{case}")


@BOTH
@pytest.mark.parametrize(("start", "sampler", "guidance", "fields"), list(_cases()))
async def test_a_map_and_a_seed_give_the_picture_that_diffusers_gives(
    adapted: Subject, start: str, sampler: str, guidance: float, fields: Any
) -> None:
    made = controlled(plan_of(adapted, sampler, guidance), start, **fields)
    assert_equal(await drawn(adapted, made), theirs(adapted, made))


@pytest.mark.parametrize(
    "adapted",
    ["sd15-inpainting", pytest.param("sdxl-inpainting", marks=pytest.mark.thorough)],
    indirect=True,
    scope="session",
)
@pytest.mark.parametrize("early_stop", [pytest.param(1.0, marks=pytest.mark.thorough), 0.5])
async def test_inpainting_networks_take_a_controlnet_that_is_not_told_the_mask(
    adapted: Subject, early_stop: float
) -> None:
    made = controlled(plan_of(adapted, "DDIM", 2.0), "inpainting", early_stop=early_stop)
    assert_equal(await drawn(adapted, made), theirs(adapted, made))


@BOTH
async def test_masked_pixels_of_an_inpainting_map_read_as_minus_1(adapted: Subject) -> None:
    start = STARTS["inpainting"]
    assert isinstance(start, Inpainting)
    made = controlled(plan_of(adapted, "DDIM", 2.0), "inpainting", picture=start.pixels, mask=start.mask)
    made = dataclasses.replace(made, control=dataclasses.replace(made.control, preprocessor="inpaint"))
    shown = start.pixels.astype(np.float32) / 255
    shown[start.mask] = -1.0
    assert_equal(await drawn(adapted, made), theirs(adapted, made, torch.from_numpy(shown.transpose(2, 0, 1)[None])))


@BOTH
async def test_at_scale_0_the_picture_is_that_without_a_controlnet(adapted: Subject) -> None:
    made = controlled(plan_of(adapted, "DDIM", 2.0), scale=0.0)
    without, _ = await drawn(adapted, dataclasses.replace(made, control=NoControl()))
    latents, _ = await drawn(adapted, made)
    assert relative(latents, without) < 1e-5


@pytest.mark.parametrize("adapted", ["sd15"], indirect=True, scope="session")
@pytest.mark.parametrize("other", [{"scale": 0.9}, {"early_stop": 0.5}, {"picture": 255 - map_of_edges()}], ids=list)
async def test_another_map_scale_or_end_shows_by_far_more_than_the_tolerance(adapted: Subject, other: Any) -> None:
    """The comparisons above can fail."""
    made = plan_of(adapted, "DDIM", 2.0)
    latents, _ = await drawn(adapted, controlled(made, **other))
    reference, _ = await drawn(adapted, controlled(made))
    assert relative(latents, reference) > 5 * LATENTS_TOLERANCE
