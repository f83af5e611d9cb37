"""Which tensors each engine of a model repository has, and their shapes: what a stranger's file is compared with.

A weights file has all of a network, its graph names what is needed: SDXL leaves a text encoder's last layer out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.adapters.weights import COMPONENTS
from server.builder.reading import READABLE, BadFile, Tensors
from server.families.card import Card
from server.initializers import initializers

Shape = tuple[int, ...]
WEIGHTS = "weights.safetensors"  # beside a graph

# Templates: the component that the adapter's own tensors are of. A template names the owner in front of each tensor.
TEMPLATES: Mapping[str, str] = {
    "unet_control": "controlnet",
    "unet_ip": "ip_adapter",
    "ip_projection": "ip_projection",
    "ip_projection_plus": "ip_projection_plus",
}


class Misfit(Exception):
    """A file is not for this engine; the text says where they differ first."""


@dataclass(frozen=True)
class EngineShapes:
    """The networks of one card."""

    family: str
    components: Mapping[str, Mapping[str, Shape]]  # by component, by name as `plain` gives it
    needed: Mapping[str, frozenset[str]]  # by component: the names without which it cannot compute

    def text_width(self, encoder: str) -> int:
        """Of a text encoder's embeddings."""
        return self.components[encoder]["embeddings.token_embedding.weight"][1]


Shapes = Mapping[str, EngineShapes]  # by card


def read_shapes(repository: Path, cards: Iterable[Card]) -> Shapes:
    """Of the cards that have variants: those with a UNet. Raises `ValueError` when an engine cannot be read."""
    found = {card.name: engine_shapes(repository, card.name, card.family) for card in cards}
    return {name: engine for name, engine in found.items() if "unet" in engine.components}


def engine_shapes(repository: Path, card: str, family: str) -> EngineShapes:
    """Of one card. Raises `ValueError` when an engine cannot be read."""
    components: dict[str, dict[str, Shape]] = {}
    needed: dict[str, frozenset[str]] = {}
    for suffix, component in {**COMPONENTS, **TEMPLATES}.items():
        version = repository / f"{card}_{suffix}" / "1"
        if not version.joinpath("model.onnx").is_file():
            continue
        own = {plain(name.partition("/")[2] or name): shape for name, shape in graph_tensors(version) if _own(name)}
        stored = {} if suffix in TEMPLATES else _stored(version / WEIGHTS)
        components.setdefault(component, {}).update(own | stored)
        needed[component] = needed.get(component, frozenset()) | own.keys()
    return EngineShapes(family, components, needed)


def plain(name: str) -> str:
    """A tensor's name in its component: transformers has put text encoders under `text_model` or not, by version."""
    return name.removeprefix("text_model.")


def squeezed(shape: Shape) -> Shape:
    """A 1x1 convolution is a linear layer, and checkpoints of one family have either."""
    return shape[:-2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _own(name: str) -> bool:
    return not name.startswith("unet/")


def graph_tensors(version: Path) -> Sequence[tuple[str, Shape]]:
    """The tensors that a graph has in files beside it. Raises `ValueError` when it cannot be read."""
    model = version / "model.onnx"
    try:
        return [(tensor.name, tensor.shape) for tensor in initializers(model) if tensor.beside]
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} is not a graph of an engine: export the checkpoint again") from error


def _stored(weights: Path) -> dict[str, Shape]:
    try:
        with Tensors(weights) as tensors:
            return {plain(name): entry.shape for name, entry in tensors.stored.items() if entry.dtype in READABLE}
    except BadFile as error:
        raise ValueError(f"{weights} is damaged: {error}; export the checkpoint again") from error
