"""The options that say what to draw, of every command that takes a request; what they ask for as a message.

Bounds are the service's: here fails only what a message cannot carry, and a file that cannot be read. What is put on
top of an engine is in `adapter_options.py`.
"""

import re
from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mediagen.adapter_options import adapters_of
from mediagen.option_values import put, read
from mediagen.v1 import image_pb2 as pb

_SAMPLERS = tuple(name.removeprefix("SAMPLER_") for name, number in pb.Sampler.items() if number)


def request_of(
    prompt: Annotated[str, typer.Argument(help="what the picture shows; (word:1.3) weighs a word more")],
    engine: Annotated[str, typer.Option(help="engine name, see `mediagen engines`")] = "sd15",
    prompt_2: Annotated[str | None, typer.Option(help="SDXL: for its second text encoder (default: PROMPT)")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what it must not show")] = None,
    negative_prompt_2: Annotated[
        str | None, typer.Option(help="SDXL: for its second text encoder (default: --negative-prompt)")
    ] = None,
    style: Annotated[str | None, typer.Option(help="SDXL: a style's name, see `mediagen styles`")] = None,
    steps: Annotated[int | None, typer.Option(help="denoising steps, 1 to 200 (default: 30)")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="guidance scale, above 0 to 50 (default: 12)")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"one of {', '.join(_SAMPLERS)} (default: DDIM)")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, see `mediagen engines` (default: its own)")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="0 to 4294967295, once for all or once a picture")] = None,
    num_images: Annotated[int | None, typer.Option("--num-images", "-n", help="pictures, 1 to 16 (default: 1)")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="last layers of the text encoder to leave out")] = None,
    init_image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="picture to start from: PNG, JPEG or WebP")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="how far to depart from it, above 0 to 1 (default: 0.8)")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="picture that is white where to paint anew")
    ] = None,
    outpainting: Annotated[
        bool, typer.Option("--outpainting", help="--init-image lies on a larger canvas, white in --mask is unknown")
    ] = False,
    full_res: Annotated[
        bool, typer.Option("--full-res", help="paint the surroundings of --mask enlarged, and paste them back")
    ] = False,
    padding: Annotated[int | None, typer.Option(help="pixels about the mask with --full-res (default: 32)")] = None,
    high_noise_frac: Annotated[
        float | None, typer.Option(help="SDXL: share before the refiner's, 0 to 1 (default: 0.8)")
    ] = None,
    refiner: Annotated[
        bool | None,
        typer.Option("--refiner/--no-refiner", help="SDXL: use a refiner where there is one (default: yes)"),
    ] = None,
) -> pb.GenerateRequest:
    """What the options of a command ask for."""
    request = pb.GenerateRequest(outpainting=outpainting, inpaint_full_res=full_res)
    given = {  # by option
        "PROMPT": ("prompt", prompt),
        "--engine": ("engine", engine),
        "--prompt-2": ("prompt_2", prompt_2),
        "--negative-prompt": ("negative_prompt", negative_prompt),
        "--negative-prompt-2": ("negative_prompt_2", negative_prompt_2),
        "--style": ("style_preset", style),
        "--steps": ("steps", steps),
        "--cfg-scale": ("cfg_scale", cfg_scale),
        "--num-images": ("num_images", num_images),
        "--clip-skip": ("clip_skip", clip_skip),
        "--init-image": ("init_image", read(init_image, "--init-image")),
        "--strength": ("strength", strength),
        "--mask": ("mask_image", read(mask, "--mask")),
        "--padding": ("inpaint_full_res_padding", padding),
        "--high-noise-frac": ("high_noise_frac", high_noise_frac),
        "--refiner": ("use_refiner", refiner),
    }
    for option, (field, value) in given.items():
        if value is not None:
            put(request, field, value, option)
    if sampler is not None:
        request.sampler = _sampler(sampler)
    if size is not None:
        request.width, request.height = _size(size)
    if seed is not None and len(seed) == 1:
        put(request, "seed", seed[0], "--seed")
    else:
        for value in seed or ():
            put(request.seeds.add(), "value", value, "--seed")
    return request


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose first parameter is a request, with the options that make one in its place."""
    own = signature(command)
    drawn, adapted = signature(request_of).parameters, signature(adapters_of).parameters
    parameters = (*drawn.values(), *list(own.parameters.values())[1:], *adapted.values())

    @wraps(command)
    def run(**given: Any) -> None:  # every option by its name, as typer reads them from the signature
        request = request_of(**{name: given.pop(name) for name in drawn})
        request.MergeFrom(adapters_of(**{name: given.pop(name) for name in adapted}))
        command(request, **given)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = own.replace(parameters=parameters)
    return run


def _sampler(name: str) -> pb.Sampler:
    if name.upper() not in _SAMPLERS:
        raise typer.BadParameter(f"{name} is none of {', '.join(_SAMPLERS)}", param_hint="--sampler")
    return cast(pb.Sampler, pb.Sampler.Value(f"SAMPLER_{name.upper()}"))  # the generated stub says int


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.lower())
    if sides is None:
        raise typer.BadParameter(f"{text} must look like 512x512", param_hint="--size")
    return int(sides[1]), int(sides[2])
