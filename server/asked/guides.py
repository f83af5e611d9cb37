"""Fields that bring pictures to go by: for a ControlNet, an IP-Adapter, and transfer images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from mediagen.v1 import image_pb2 as pb

from server.adapters.control import Control, NoControl
from server.adapters.ip_adapter import ImagePrompt, Method, NoImagePrompt, latent_mask
from server.adapters.preprocess import PREPROCESSORS
from server.adapters.tokens import find
from server.adapters.transfer import Transfer, wrong_triggers
from server.adapters.weights import Part
from server.asked.reading import MAX_TRIGGER, Reading, entries, number, part_of, wrong_trigger
from server.assets.asset import Asset, AssetType
from server.bounds import MAX_TRANSFERRED
from server.canvas import Box, Inpainting, NothingToPaint, framed, painted_at, whole
from server.catalog import Engine
from server.clip import normalised
from server.engines.port import Array
from server.families.adapted import AdaptedCard
from server.families.sdxl_networks import SdxlCard
from server.images import decode_mask
from server.prompts.styles import STYLES
from server.violations import quoted

MAX_TRIGGERS = 8  # of transfer images
_MAP_ITSELF = "send the map itself with controlnet_preprocess false"

_METHODS: Mapping[int, Method] = {
    pb.IP_ADAPTER_METHOD_UNSPECIFIED: "full",
    pb.IP_ADAPTER_METHOD_FULL: "full",
    pb.IP_ADAPTER_METHOD_STYLE: "style",
    pb.IP_ADAPTER_METHOD_COMPOSITION: "composition",
}


def control(reading: Reading) -> tuple[Control | NoControl, Sequence[Part]]:
    request, nothing = reading.request, (NoControl(), ())
    asset = None
    if reading.wants("controlnet"):
        asset = reading.asset("controlnet", request.controlnet, AssetType.CONTROLNET)
    picture = None
    if reading.wants("controlnet_image"):
        picture = reading.picture("controlnet_image", request.controlnet_image)
    if asset is None or picture is None:
        return nothing
    wanted = request.controlnet_preprocess if request.HasField("controlnet_preprocess") else True
    preprocessor = asset.facts.preprocessor if wanted else ""
    if wanted and (wrong := _no_preprocessor(reading, asset)):
        reading.wrong("controlnet_preprocess", wrong, "controlnet")
        return nothing
    if preprocessor == "inpaint" and not (request.init_image and request.mask_image):  # right or wrong in themselves
        why = f"{quoted(asset.name)} paints what mask_image marks; send init_image and mask_image, or {_MAP_ITSELF}"
        reading.wrong("controlnet_preprocess", why, "controlnet", "init_image", "mask_image")
        return nothing
    mask = np.zeros((reading.size.height, reading.size.width), bool)
    if isinstance(reading.start, Inpainting):
        mask = reading.start.mask
    told = Control(
        picture=framed(picture, reading.size, _drawn(reading)),
        mask=mask,
        preprocessor=preprocessor,
        scale=number(request, "controlnet_conditioning_scale"),
        early_stop=number(request, "controlnet_early_stop"),
    )
    return told, (part_of(asset, "controlnet"),)


def _drawn(reading: Reading) -> Box:
    """What of the canvas is drawn: what an inpainting shows of it enlarged, or all."""
    return reading.start.box if isinstance(reading.start, Inpainting) else whole(reading.size)


def _no_preprocessor(reading: Reading, asset: Asset) -> str:
    """Why this deployment cannot make a ControlNet's map; empty: it can."""
    name = asset.facts.preprocessor
    if not name:
        return f"{quoted(asset.name)} does not say what its map is made by; {_MAP_ITSELF}"
    deployed = {spec.name.removeprefix("preprocessor_") for spec in reading.engine.preprocessors}
    if name not in PREPROCESSORS and name not in deployed:
        why = f"this deployment has no preprocessor {quoted(name)}, which `python -m export preprocessor` renders"
        return f"{why}; {_MAP_ITSELF}"
    return ""


def image_prompt(reading: Reading) -> tuple[ImagePrompt | NoImagePrompt, str, Sequence[Part]]:
    """With the name of its IP-Adapter."""
    request, nothing = reading.request, (NoImagePrompt(), "", ())
    if not reading.wants("ip_adapter_image"):
        return nothing
    name = request.ip_adapter or _first_ip_adapter(reading)
    if not name:
        why = f"the asset library has no IP-Adapter that fits {reading.engine.card.name}; upload one"
        reading.wrong("ip_adapter_image", why, "engine")
        return nothing
    asset = reading.asset("ip_adapter", name, AssetType.IP_ADAPTER)
    picture = reading.picture("ip_adapter_image", request.ip_adapter_image)
    mask = _ip_adapter_mask(reading)
    method = _METHODS.get(request.ip_adapter_method)
    if method is None:
        reading.wrong("ip_adapter_method", f"{request.ip_adapter_method} is none of full, style and composition")
    if request.ip_adapter_mode not in pb.IpAdapterMode.values():
        reading.wrong("ip_adapter_mode", f"{request.ip_adapter_mode} is not base, the only one there is")
    if asset is None or picture is None or mask is None or method is None:
        return nothing
    prompt = ImagePrompt(
        pixel_values=normalised(picture, _image_side(reading.engine)),
        mask=latent_mask(mask, reading.engine.card.pixels_per_latent),
        method=method,
        scale=number(request, "ip_adapter_scale"),
        projection="plus" if asset.facts.projection == "plus" else "linear",
    )
    return prompt, name, (part_of(asset, "ip_adapter"),)


def _ip_adapter_mask(reading: Reading) -> Array | None:
    """Where it applies: height width, bool, at the request's size. None where something is wrong with the mask."""
    data = reading.request.ip_adapter_mask_image
    if not data:
        return np.ones((reading.size.height, reading.size.width), bool)
    pixels = reading.picture("ip_adapter_mask_image", data, decode_mask)
    try:
        return None if pixels is None else painted_at(framed(pixels, reading.size, _drawn(reading)), reading.size)
    except NothingToPaint:
        why = "black everywhere that is drawn, at the requested size; paint white where the IP-Adapter is to apply"
        reading.wrong("ip_adapter_mask_image", why, "width", "height")
        return None


def _image_side(engine: Engine) -> int:
    """Pixels of what its image encoder is shown."""
    return engine.card.image_side if isinstance(engine.card, AdaptedCard) else 0


def _first_ip_adapter(reading: Reading) -> str:
    """The name of the first that fits; empty: there is none."""
    for name in reading.shelf.names(AssetType.IP_ADAPTER):
        asset = reading.shelf.find(name, AssetType.IP_ADAPTER)
        if asset is not None and reading.engine.card.name in asset.facts.engines:
            return name
    return ""


def transfers(reading: Reading) -> tuple[tuple[Transfer, ...], Sequence[Part]]:
    """With the LoRA that goes with the encoder."""
    card, request = reading.engine.card, reading.request
    if not isinstance(card, SdxlCard) or "transfer_images" in reading.engine.refuses:  # who refuses it says so
        return (), ()
    found: list[Transfer] = []
    told = request.transfer_images
    words = list(told) if len(told) <= MAX_TRIGGERS else []
    texts = {field: text for field in ("prompt", "prompt_2") if (text := getattr(request, field))}
    for trigger, wrong in wrong_triggers(texts, words):
        reading.wrong(f"transfer_images[{trigger[:MAX_TRIGGER]}]", wrong, *texts)
    for trigger in _in_style(reading, words):
        why = f"a word of the style {request.style_preset} as well; write another for what the pictures show"
        reading.wrong(f"transfer_images[{trigger[:MAX_TRIGGER]}]", why, "style_preset")
    for where, trigger, images in entries(reading, "transfer_images", told, MAX_TRIGGERS):
        if wrong := wrong_trigger(trigger):
            reading.wrong(where, wrong)
        elif other := _taken(trigger, request.textual_inversions.values()):
            why = f"{quoted(trigger)} and {quoted(other)}, which stands for a textual inversion, are not apart"
            reading.wrong(where, f"{why}; give one of them another word")
        elif not 1 <= len(images.images) <= MAX_TRANSFERRED:
            reading.wrong(
                where, f"{len(images.images)} pictures; give 1 to {MAX_TRANSFERRED} of what the word stands for"
            )
        else:
            shown = [_shown(reading, where, data, card.transfer_side) for data in images.images]
            seen = [pixels for pixels in shown if pixels is not None]
            found += [Transfer(trigger, np.stack(seen))] if len(seen) == len(shown) else []
    if not found:
        return (), ()
    lora = Part("lora", card.transfer_lora, frozenset({"unet"}))
    return tuple(found), (lora,) if lora.sha256 else ()


def _in_style(reading: Reading, triggers: Sequence[str]) -> Iterator[str]:
    """Those that a request's style puts into its texts itself, where they would stand for pictures, too."""
    style = STYLES.get(reading.request.style_preset)
    if style is not None and "style_preset" not in reading.engine.refuses:
        own = style.applied("")
        yield from (trigger for trigger in triggers if find(own, [trigger]))


def _taken(trigger: str, others: Iterable[str]) -> str:
    """Another word that stands in it, or has it in itself; the longer would take the place of both. Empty: none."""
    return next((other for other in others if find(other, [trigger]) or find(trigger, [other])), "")


def _shown(reading: Reading, where: str, data: bytes, side: int) -> Array | None:
    """What an encoder is shown of a file: of several, one at a time is held at its own size."""
    picture = reading.picture(where, data)
    return None if picture is None else normalised(picture, side)
