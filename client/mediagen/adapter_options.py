"""The options that put assets and pictures on top of an engine; what they ask for as a message.

Names, bounds and what goes together are the service's to judge: here fails what has the wrong form, what is given
twice, and a file that cannot be read.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mediagen.option_values import not_text, put, read
from mediagen.v1 import image_pb2 as pb

_METHODS = tuple(
    name.removeprefix("IP_ADAPTER_METHOD_").lower() for name, number in pb.IpAdapterMethod.items() if number
)


def _option(*names: str, help: str, **facts: Any) -> Any:
    """One of this file: they stand together in the help."""
    return typer.Option(*names, help=help, rich_help_panel="Adapters", **facts)


def adapters_of(
    checkpoint: Annotated[
        str | None, _option(help="checkpoint asset, see `mediagen assets list` (default: the engine's own weights)")
    ] = None,
    vae: Annotated[str | None, _option(help="VAE asset (default: the engine's own, or the checkpoint's)")] = None,
    lora: Annotated[
        list[str] | None,
        _option(metavar="NAME[=WEIGHT]", help="LoRA asset, any weight (default: 1); up to 16, once each"),
    ] = None,
    inversion: Annotated[
        list[str] | None,
        _option(metavar="NAME=WORD", help="textual inversion asset and its word in the prompts; up to 16, once each"),
    ] = None,
    controlnet: Annotated[str | None, _option(help="ControlNet asset, with --control-image")] = None,
    control_image: Annotated[
        Path | None,
        _option(exists=True, dir_okay=False, help="picture to make the control map from: PNG, JPEG or WebP"),
    ] = None,
    no_preprocess: Annotated[
        bool, _option("--no-preprocess", help="--control-image is the control map itself")
    ] = False,
    control_scale: Annotated[float | None, _option(help="weight of the ControlNet, at least 0 (default: 1)")] = None,
    control_stop: Annotated[
        float | None, _option(help="share of the steps after which it stops, 0 to 1 (default: it does not)")
    ] = None,
    ip_adapter: Annotated[
        str | None, _option(help="IP-Adapter asset, with --ip-image (default: the first that fits the engine)")
    ] = None,
    ip_image: Annotated[
        Path | None,
        _option(exists=True, dir_okay=False, help="picture to take as a prompt; its middle square is what is seen"),
    ] = None,
    ip_mask: Annotated[
        Path | None, _option(exists=True, dir_okay=False, help="picture that is white where --ip-image applies")
    ] = None,
    ip_method: Annotated[str | None, _option(help=f"one of {', '.join(_METHODS)} (default: full)")] = None,
    ip_scale: Annotated[float | None, _option(help="weight of --ip-image, 0 to 1 (default: 1)")] = None,
    transfer: Annotated[
        list[str] | None,
        _option(
            metavar="WORD=FILE",
            help="SDXL, SSD: a word in PROMPT and a picture of what it stands for; 1 to 4 for a word, up to 8 words",
        ),
    ] = None,
) -> pb.GenerateRequest:
    """What these options ask for."""
    request = pb.GenerateRequest()
    given = {  # by option
        "--checkpoint": ("checkpoint", checkpoint),
        "--vae": ("vae", vae),
        "--controlnet": ("controlnet", controlnet),
        "--control-image": ("controlnet_image", read(control_image, "--control-image")),
        "--no-preprocess": ("controlnet_preprocess", False if no_preprocess else None),
        "--control-scale": ("controlnet_conditioning_scale", control_scale),
        "--control-stop": ("controlnet_early_stop", control_stop),
        "--ip-adapter": ("ip_adapter", ip_adapter),
        "--ip-image": ("ip_adapter_image", read(ip_image, "--ip-image")),
        "--ip-mask": ("ip_adapter_mask_image", read(ip_mask, "--ip-mask")),
        "--ip-method": ("ip_adapter_method", None if ip_method is None else _method(ip_method)),
        "--ip-scale": ("ip_adapter_scale", ip_scale),
    }
    for option, (field, value) in given.items():
        if value is not None:
            put(request, field, value, option)
    request.loras.update(_loras(lora or ()))
    request.textual_inversions.update(_inversions(inversion or ()))
    for word, file in _pairs(transfer or (), "--transfer", "WORD=FILE, such as luis=luis.png"):
        request.transfer_images[word].images.append(_picture(file, "--transfer"))
    return request


def _loras(given: Sequence[str]) -> dict[str, float]:
    option, weights = "--lora", dict[str, float]()
    for text in given:
        name, _, weight = text.partition("=")
        if name == "" or text.endswith("="):
            raise typer.BadParameter(f"{text} must look like crayon or crayon=0.8", param_hint=option)
        _once(name, weights, option)
        try:
            weights[name] = float(weight or 1)
        except ValueError as error:
            raise typer.BadParameter(f"{weight} is no weight in {text}; it is a number", param_hint=option) from error
    return weights


def _inversions(given: Sequence[str]) -> dict[str, str]:
    option, words = "--inversion", dict[str, str]()
    for name, word in _pairs(given, option, "NAME=WORD, such as my-cat=mycat"):
        _once(name, words, option)
        words[name] = word
    return words


def _pairs(given: Sequence[str], option: str, form: str) -> Iterator[tuple[str, str]]:
    """Parted at the first "=". Raises `BadParameter`."""
    for text in given:
        first, _, second = text.partition("=")
        if first == "" or second == "":
            raise typer.BadParameter(f"{text} must look like {form}", param_hint=option)
        yield _text(first, option), _text(second, option)


def _once(name: str, before: dict[str, Any], option: str) -> None:
    _text(name, option)
    if name in before:
        raise typer.BadParameter(f"{name} is given twice; give it once", param_hint=option)


def _text(text: str, option: str) -> str:
    """A key of a map, which protobuf would not name where it is wrong."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise not_text(text, option) from error
    return text


def _picture(file: str, option: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _method(name: str) -> pb.IpAdapterMethod:
    if name.lower() not in _METHODS:
        raise typer.BadParameter(f"{name} is none of {', '.join(_METHODS)}", param_hint="--ip-method")
    return cast(pb.IpAdapterMethod, pb.IpAdapterMethod.Value(f"IP_ADAPTER_METHOD_{name.upper()}"))
