"""The adapter fields of a request: assets by name, pictures that guide, words that stand for pictures.

Beside `request.py` the only file that reads request fields. Knows assets by what a shelf tells of them.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from mediagen.v1 import image_pb2 as pb

from server.adapters.control import Control, NoControl
from server.adapters.ip_adapter import ImagePrompt, Method, NoImagePrompt, latent_mask
from server.adapters.names import AdapterNames
from server.adapters.preprocess import PREPROCESSORS
from server.adapters.tokens import Inversion, inversion
from server.adapters.transfer import Transfer, wrong_triggers
from server.adapters.weights import Kind, Part
from server.assets.asset import Asset, AssetType
from server.bounds import MAX_TRANSFERRED
from server.builder.reading import BadFile, Tensors
from server.canvas import FromNoise, FromPicture, Inpainting, NothingToPaint, framed, painted_at, whole
from server.catalog import Engine
from server.clip import normalised
from server.engines.port import Array
from server.families.adapted import AdaptedCard
from server.families.base import Size
from server.families.sdxl import SdxlCard
from server.fields import DEFAULTS
from server.images import BadImage, decode, decode_mask
from server.violations import Violation, quoted

MAX_LORAS = 16
MAX_INVERSIONS = 16
MAX_TRIGGERS = 8  # of transfer images
MAX_TRIGGER = 100  # characters of a trigger word
_LIKELY = 3  # names told where one is not known

_METHODS: Mapping[int, Method] = {
    pb.IP_ADAPTER_METHOD_UNSPECIFIED: "full",
    pb.IP_ADAPTER_METHOD_FULL: "full",
    pb.IP_ADAPTER_METHOD_STYLE: "style",
    pb.IP_ADAPTER_METHOD_COMPOSITION: "composition",
}
_CALLED: Mapping[AssetType, str] = {
    AssetType.CHECKPOINT: "checkpoint",
    AssetType.LORA: "LoRA",
    AssetType.TEXTUAL_INVERSION: "textual inversion",
    AssetType.VAE: "VAE",
    AssetType.CONTROLNET: "ControlNet",
    AssetType.IP_ADAPTER: "IP-Adapter",
}


class Shelf(Protocol):
    """The assets that a caller may use."""

    def find(self, name_or_id: str, type: AssetType, /) -> Asset | None:
        """The ready asset of a name or id; the caller's own before a public one."""

    def names(self, type: AssetType, /) -> Sequence[str]:
        """Of all of a kind, in order."""

    def path(self, asset: Asset, /) -> Path:
        """Its file."""


class EmptyShelf:
    """Where no asset library is."""

    def find(self, name_or_id: str, type: AssetType, /) -> Asset | None:
        """See `Shelf`."""
        return None

    def names(self, type: AssetType, /) -> Sequence[str]:
        """See `Shelf`."""
        return ()

    def path(self, asset: Asset, /) -> Path:
        """See `Shelf`."""
        raise LookupError(asset.name)


@dataclass(frozen=True)
class Adapters:
    """What a request puts on top of its engine."""

    parts: tuple[Part, ...]
    inversions: tuple[Inversion, ...]
    control: Control | NoControl
    image_prompt: ImagePrompt | NoImagePrompt
    transfers: tuple[Transfer, ...]
    names: AdapterNames


NO_ADAPTERS = Adapters((), (), NoControl(), NoImagePrompt(), (), AdapterNames())


@dataclass
class _Reading:
    """One request on its way; collects what is wrong."""

    request: pb.GenerateRequest
    engine: Engine
    size: Size
    start: FromNoise | FromPicture | Inpainting
    shelf: Shelf
    violations: list[Violation] = field(default_factory=list)

    def wants(self, name: str) -> bool:
        """Whether a field asks for something that the engine does not refuse anyway."""
        return bool(getattr(self.request, name)) and name not in self.engine.refuses

    def wrong(self, name: str, why: str, *judged_by: str) -> None:
        """Something is."""
        self.violations.append(Violation(name, why, judged_by=frozenset(judged_by)))

    def asset(self, name: str, asked: str, kind: AssetType) -> Asset | None:
        """The asset that field `name` asks for; None where something is wrong with it."""
        found = self.shelf.find(asked, kind)
        if found is None:
            likely = get_close_matches(asked, self.shelf.names(kind), _LIKELY, 0.4)
            meant = f"; the nearest are {', '.join(likely)}" if likely else ""
            self.wrong(name, f"no {_CALLED[kind]} {quoted(asked)}{meant}; ListAssets and /v1/assets tell all")
            return None
        card = self.engine.card.name
        if card not in found.facts.engines:
            fits = ", ".join(found.facts.engines)
            self.wrong(name, f"{quoted(asked)} fits {fits} and not {card}", "engine")
            return None
        return found

    def picture(self, name: str, data: bytes, read: Callable[[bytes], Array] = decode) -> Array | None:
        """The pixels of a file; None where something is wrong with it."""
        try:
            return read(data)
        except BadImage as error:
            self.wrong(name, str(error))
            return None


def number(request: pb.GenerateRequest, field: str) -> float:
    """The number in a field, or its default."""
    value: float = getattr(request, field) if request.HasField(field) else DEFAULTS[field]
    return value


def carries_pictures(request: pb.GenerateRequest) -> bool:
    """Whether files are decoded for the adapters' sake."""
    return bool(
        request.controlnet_image
        or request.ip_adapter_image
        or request.ip_adapter_mask_image
        or any(told.images for told in request.transfer_images.values())
    )


def read_adapters(
    request: pb.GenerateRequest,
    engine: Engine,
    size: Size,
    start: FromNoise | FromPicture | Inpainting,
    shelf: Shelf,
) -> tuple[Adapters, list[Violation]]:
    """What a request puts on top of its engine, and what is wrong with that. `size` is one of the engine's."""
    reading = _Reading(request, engine, size, start, shelf)
    if request.controlnet and request.ip_adapter_image and not {"controlnet", "ip_adapter_image"} & engine.refuses:
        why = "not together with controlnet: no network takes both; send one of them"
        reading.wrong("ip_adapter_image", why, "controlnet")
    control, control_parts = _control(reading)
    image_prompt, ip_adapter, ip_parts = _image_prompt(reading)
    transfers, transfer_parts = _transfers(reading)
    adapters = Adapters(
        parts=(
            *_whole(reading, "checkpoint", AssetType.CHECKPOINT, "checkpoint"),
            *_whole(reading, "vae", AssetType.VAE, "vae"),
            *_loras(reading, transfer_parts),
            *control_parts,
            *ip_parts,
        ),
        inversions=tuple(_inversions(reading)),
        control=control,
        image_prompt=image_prompt,
        transfers=transfers,
        names=AdapterNames(
            checkpoint=request.checkpoint,
            vae=request.vae,
            loras=dict(request.loras),
            textual_inversions=dict(request.textual_inversions),
            controlnet=request.controlnet,
            ip_adapter=ip_adapter,
        ),
    )
    return adapters, reading.violations


def _part(asset: Asset, kind: Kind, weight: float = 1.0) -> Part:
    return Part(kind, asset.sha256, frozenset(asset.facts.components), weight)


def _whole(reading: _Reading, name: str, kind: AssetType, part: Kind) -> Iterator[Part]:
    """A checkpoint, an autoencoder."""
    if reading.wants(name) and (asset := reading.asset(name, getattr(reading.request, name), kind)) is not None:
        yield _part(asset, part)


Told = TypeVar("Told")


def _entries(reading: _Reading, name: str, told: Mapping[str, Told], most: int) -> Iterator[tuple[str, str, Told]]:
    """(where, name, value) of a map with names of assets; none of one that is too long to be looked into."""
    if name in reading.engine.refuses:
        return
    if len(told) > most:
        reading.wrong(name, f"{len(told)} of them; at most {most} are allowed")
        return
    for key, value in sorted(told.items()):
        yield f"{name}[{key[:MAX_TRIGGER]}]", key, value


def _loras(reading: _Reading, others: Iterable[Part]) -> Iterator[Part]:
    """Equal ones add up: an asset may be asked for by its name and by its id."""
    weights: Counter[str] = Counter()
    assets: dict[str, Part] = {}
    for where, name, weight in _entries(reading, "loras", reading.request.loras, MAX_LORAS):
        if not math.isfinite(weight):
            reading.wrong(where, f"{weight} is not a finite number")
        elif (asset := reading.asset(where, name, AssetType.LORA)) is not None:
            assets[asset.sha256] = _part(asset, "lora")
            weights[asset.sha256] += weight
    for part in others:
        assets[part.sha256] = part
        weights[part.sha256] += part.weight
    for sha256, part in assets.items():
        if weights[sha256] != 0:
            yield Part(part.kind, sha256, part.components, weights[sha256])


def _inversions(reading: _Reading) -> Iterator[Inversion]:
    entries = list(_entries(reading, "textual_inversions", reading.request.textual_inversions, MAX_INVERSIONS))
    triggers = Counter(trigger for _, _, trigger in entries)
    for where, name, trigger in entries:
        if wrong := _wrong_trigger(trigger):
            reading.wrong(where, wrong)
        elif triggers[trigger] > 1:
            reading.wrong(
                where, f"{quoted(trigger)} stands for {triggers[trigger]} of them; give each a word of its own"
            )
        elif (asset := reading.asset(where, name, AssetType.TEXTUAL_INVERSION)) is not None:
            try:
                with Tensors(reading.shelf.path(asset)) as file:
                    tensors = {name: file.float32(name) for name in file.stored}
            except (OSError, BadFile) as error:  # removed since it was found
                reading.wrong(where, f"{quoted(name)} cannot be read any more: {error}")
            else:
                yield inversion(trigger, tensors)


def _wrong_trigger(trigger: str) -> str:
    """What is wrong with a word; empty: nothing."""
    if not trigger.strip():
        return "no trigger word; say which word in the prompt stands for it"
    if len(trigger) > MAX_TRIGGER:
        return f"a trigger word of {len(trigger)} characters; at most {MAX_TRIGGER} are allowed"
    if trigger != trigger.strip() or any(c in trigger for c in "()\\\n\r\t"):
        return f"{quoted(trigger)} is no trigger word: no brackets, backslashes, and no space around it"
    return ""


def _control(reading: _Reading) -> tuple[Control | NoControl, Sequence[Part]]:
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
    mask, box = np.zeros((reading.size.height, reading.size.width), bool), whole(reading.size)
    if isinstance(reading.start, Inpainting):
        mask, box = reading.start.mask, reading.start.box
    control = Control(
        picture=framed(picture, reading.size, box),
        mask=mask,
        preprocessor=preprocessor,
        scale=number(request, "controlnet_conditioning_scale"),
        early_stop=number(request, "controlnet_early_stop"),
    )
    return control, (_part(asset, "controlnet"),)


def _no_preprocessor(reading: _Reading, asset: Asset) -> str:
    """Why this deployment cannot make a ControlNet's map; empty: it can."""
    name, instead = asset.facts.preprocessor, "send the map itself with controlnet_preprocess false"
    if not name:
        return f"{quoted(asset.name)} does not say what its map is made by; {instead}"
    deployed = {spec.name.removeprefix("preprocessor_") for spec in reading.engine.preprocessors}
    if name not in PREPROCESSORS and name not in deployed:
        why = f"this deployment has no preprocessor {quoted(name)}, which `python -m export preprocessor` renders"
        return f"{why}; {instead}"
    if name == "inpaint" and not isinstance(reading.start, Inpainting):
        return f"{quoted(asset.name)} paints what mask_image marks; send init_image and mask_image, or {instead}"
    return ""


def _image_prompt(reading: _Reading) -> tuple[ImagePrompt | NoImagePrompt, str, Sequence[Part]]:
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
    return prompt, name, (_part(asset, "ip_adapter"),)


def _ip_adapter_mask(reading: _Reading) -> Array | None:
    """Where it applies: height width, bool, at the request's size. None where something is wrong with the mask."""
    data = reading.request.ip_adapter_mask_image
    if not data:
        return np.ones((reading.size.height, reading.size.width), bool)
    pixels = reading.picture("ip_adapter_mask_image", data, decode_mask)
    try:
        return None if pixels is None else painted_at(pixels, reading.size)
    except NothingToPaint:
        why = "black everywhere at the requested size; paint white where the IP-Adapter is to apply"
        reading.wrong("ip_adapter_mask_image", why, "width", "height")
        return None


def _image_side(engine: Engine) -> int:
    """Pixels of what its image encoder is shown."""
    return engine.card.image_side if isinstance(engine.card, AdaptedCard) else 0


def _first_ip_adapter(reading: _Reading) -> str:
    """The name of the first that fits; empty: there is none."""
    for name in reading.shelf.names(AssetType.IP_ADAPTER):
        asset = reading.shelf.find(name, AssetType.IP_ADAPTER)
        if asset is not None and reading.engine.card.name in asset.facts.engines:
            return name
    return ""


def _transfers(reading: _Reading) -> tuple[tuple[Transfer, ...], Sequence[Part]]:
    """With the LoRA that goes with the encoder."""
    card = reading.engine.card
    if not isinstance(card, SdxlCard):  # it refuses the field
        return (), ()
    found: list[Transfer] = []
    told = reading.request.transfer_images
    words = list(told) if len(told) <= MAX_TRIGGERS else []
    texts = {field: text for field in ("prompt", "prompt_2") if (text := getattr(reading.request, field))}
    for trigger, wrong in wrong_triggers(texts, words):
        reading.wrong(f"transfer_images[{trigger[:MAX_TRIGGER]}]", wrong, *texts)
    for where, trigger, images in _entries(reading, "transfer_images", told, MAX_TRIGGERS):
        if wrong := _wrong_trigger(trigger):
            reading.wrong(where, wrong)
        elif trigger in reading.request.textual_inversions.values():
            reading.wrong(
                where, f"{quoted(trigger)} stands for a textual inversion, too; give one of them another word"
            )
        elif not 1 <= len(images.images) <= MAX_TRANSFERRED:
            reading.wrong(
                where, f"{len(images.images)} pictures; give 1 to {MAX_TRANSFERRED} of what the word stands for"
            )
        else:
            pictures = [reading.picture(where, data) for data in images.images]
            seen = [normalised(picture, card.transfer_side) for picture in pictures if picture is not None]
            found += [Transfer(trigger, np.stack(seen))] if len(seen) == len(pictures) else []
    if not found:
        return (), ()
    lora = Part("lora", card.transfer_lora, frozenset({"unet"}))
    return tuple(found), (lora,) if lora.sha256 else ()
