"""Looks at a file that somebody uploaded: what it is, which engines it fits, and that every number in it is one.

Needs no onnx and only headers of the engines' weights, so that the service may call it. Knows nothing of who owns a
file or where it is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.adapters.weights import COMPONENTS
from server.assets.asset import AssetType, BadAsset, Facts
from server.builder.adapter import expect_controlnet, expect_ip_adapter, preprocessor, projection
from server.builder.lora import is_lora, read_lora
from server.builder.reading import READABLE, BadFile, Tensors, some, to_half
from server.builder.shapes import EngineShapes, Misfit, Shapes, read_shapes
from server.builder.single_file import find

__all__ = ["Shapes", "inspect", "read_shapes"]

MOST_VECTORS = 75  # a chunk of text has as many places
_ENCODERS = ("text_encoder", "text_encoder_2")


def inspect(path: Path, type: AssetType, engines: Shapes) -> Facts:
    """What is in a file that is said to be of a type. Raises `BadAsset`: what was found and what is allowed."""
    try:
        with Tensors(path) as tensors:
            found = recognise(tensors)
            if found is not type:
                raise BadAsset(
                    f"the file is {_TITLES[found]} by its tensors, not {_TITLES[type]}, as which it was given"
                )
            facts = _LOOKS[type](tensors, engines)
            _expect_numbers(tensors, type)
            return facts
    except BadFile as error:
        raise BadAsset(str(error)) from error


def kind(path: Path) -> AssetType:
    """What a file is by its tensors, where nobody says it. Raises `BadAsset`."""
    try:
        with Tensors(path) as tensors:
            return recognise(tensors)
    except BadFile as error:
        raise BadAsset(str(error)) from error


_TITLES: Mapping[AssetType, str] = {
    AssetType.CHECKPOINT: "a checkpoint",
    AssetType.LORA: "a LoRA",
    AssetType.TEXTUAL_INVERSION: "a textual inversion",
    AssetType.VAE: "a VAE",
    AssetType.CONTROLNET: "a ControlNet",
    AssetType.IP_ADAPTER: "an IP-Adapter",
}
_UNET = ("model.diffusion_model.", "unet.", "down_blocks.", "input_blocks.")
_VAE = ("first_stage_model.", "vae.", "decoder.", "encoder.")


def recognise(tensors: Tensors) -> AssetType:
    """Told from names alone. Raises `BadAsset` for what is none of them."""
    names = list(tensors.stored)
    if any(name.startswith(("image_proj.", "ip_adapter.")) for name in names):
        return AssetType.IP_ADAPTER
    if any(name.startswith(("controlnet_cond_embedding.", "control_model.")) for name in names):
        return AssetType.CONTROLNET
    if any(is_lora(name) for name in names):
        return AssetType.LORA
    if any(name.startswith(_UNET) for name in names):
        return AssetType.CHECKPOINT
    if any(name.startswith(_VAE) for name in names):
        return AssetType.VAE
    if _vectors(tensors):
        return AssetType.TEXTUAL_INVERSION
    titles = ", ".join(_TITLES.values())
    raise BadAsset(f"the file's tensors ({some(names)}) are those of none of {titles}")


@dataclass(frozen=True)
class _Fit:
    """The engines that a file fits."""

    engines: tuple[str, ...]
    family: str  # of the first
    components: tuple[str, ...]  # that it brings to any of them


def _fit(engines: Shapes, components: Callable[[EngineShapes], Sequence[str]]) -> _Fit:
    """`components` raises `Misfit` for an engine that a file is not for, or says what it brings to it.

    Families share networks: an autoencoder of SDXL has the names and shapes of SD 1.5's, and a first text encoder, too.
    """
    fits: dict[str, tuple[str, ...]] = {}
    reasons = []
    for name, engine in engines.items():
        try:
            fits[name] = tuple(components(engine))
        except Misfit as error:
            reasons.append(f"{name}: {error}")
    if not fits:
        raise BadAsset(f"the file fits none of this deployment's engines. {'; '.join(reasons)}")
    together = dict.fromkeys(component for brought in fits.values() for component in brought)
    return _Fit(tuple(fits), engines[next(iter(fits))].family, tuple(together))


def _facts(fit: _Fit, vectors: int = 0, preprocessor: str = "", projection: str = "") -> Facts:
    return Facts(fit.engines, fit.family, fit.components, vectors, preprocessor, projection)


def _checkpoint(tensors: Tensors, engines: Shapes) -> Facts:
    def components(engine: EngineShapes) -> Sequence[str]:
        found = find(tensors, engine, list(dict.fromkeys(COMPONENTS.values())))
        if "unet" not in found:
            raise Misfit("the file has nothing of its UNet")
        return list(found)

    return _facts(_fit(engines, components))


def _vae(tensors: Tensors, engines: Shapes) -> Facts:
    return _facts(_fit(engines, lambda engine: list(find(tensors, engine, ["vae"]))))


def _lora(tensors: Tensors, engines: Shapes) -> Facts:
    def components(engine: EngineShapes) -> Sequence[str]:
        changed = {change.component for change in read_lora(tensors, engine)}
        return [component for component in ("unet", *_ENCODERS) if component in changed]

    return _facts(_fit(engines, components))


def _controlnet(tensors: Tensors, engines: Shapes) -> Facts:
    if any(name.startswith("control_model.") for name in tensors.stored):
        raise BadAsset(
            "the file is a ControlNet in its first layout (control_model.…): convert it to diffusers' layout"
        )

    def components(engine: EngineShapes) -> Sequence[str]:
        expect_controlnet(tensors, engine)
        return ["controlnet"]

    return _facts(_fit(engines, components), preprocessor=preprocessor(tensors))


def _ip_adapter(tensors: Tensors, engines: Shapes) -> Facts:
    def components(engine: EngineShapes) -> Sequence[str]:
        expect_ip_adapter(tensors, engine)
        return ["ip_adapter"]

    return _facts(_fit(engines, components), projection=projection(tensors))


def _textual_inversion(tensors: Tensors, engines: Shapes) -> Facts:
    vectors = _vectors(tensors)
    count = next(iter(vectors.values()))[0]
    if any(rows != count for rows, _ in vectors.values()):
        raise BadAsset("the file's two encoders have different numbers of vectors; they are one concept's")
    if count > MOST_VECTORS:
        raise BadAsset(f"the file has {count} vectors; at most {MOST_VECTORS} are taken")

    def components(engine: EngineShapes) -> Sequence[str]:
        encoders = [encoder for encoder in _ENCODERS if encoder in engine.components]
        if len(vectors) != len(encoders):
            raise Misfit(f"it has {len(encoders)} text encoders, the file is for {len(vectors)}")
        for encoder, (_, width) in zip(encoders, vectors.values(), strict=True):
            if engine.text_width(encoder) != width:
                raise Misfit(f"its {encoder} has {engine.text_width(encoder)} channels, the file {width}")
        return encoders

    return _facts(_fit(engines, components), vectors=count)


def _vectors(tensors: Tensors) -> Mapping[str, tuple[int, int]]:
    """Rows and width of a textual inversion's tensors, that of the first encoder first; empty when it is none."""
    shapes = {name: stored.shape for name, stored in tensors.stored.items() if stored.dtype in READABLE}
    if set(tensors.stored) == {"clip_l", "clip_g"}:
        shapes = {name: shapes[name] for name in ("clip_l", "clip_g") if name in shapes}
    elif len(tensors.stored) != 1:
        return {}
    if len(shapes) != len(tensors.stored) or any(len(shape) not in (1, 2) for shape in shapes.values()):
        return {}
    return {name: (1 if len(shape) == 1 else shape[0], shape[-1]) for name, shape in shapes.items()}


_LOOKS: Mapping[AssetType, Callable[[Tensors, Shapes], Facts]] = {
    AssetType.CHECKPOINT: _checkpoint,
    AssetType.LORA: _lora,
    AssetType.TEXTUAL_INVERSION: _textual_inversion,
    AssetType.VAE: _vae,
    AssetType.CONTROLNET: _controlnet,
    AssetType.IP_ADAPTER: _ip_adapter,
}
# What is stored as it is, and not merged into something first.
_HALVED = frozenset({AssetType.CHECKPOINT, AssetType.VAE, AssetType.CONTROLNET, AssetType.IP_ADAPTER})


def _expect_numbers(tensors: Tensors, type: AssetType) -> None:
    """Every value of every tensor is finite, and in half precision too where it will be kept so.

    Those that no engine reads (what training leaves beside) may be of any size, hence piece by piece.
    """
    for name, stored in tensors.stored.items():
        if stored.dtype in READABLE:
            for values in tensors.pieces(name):
                if type in _HALVED:
                    to_half(values, name)
