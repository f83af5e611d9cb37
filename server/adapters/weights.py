"""Other weights under the same graph: which a plan's networks have, as data. Knows no files and nobody who writes them.

A variant is named by what it is made of, so the same wish is the same network, whoever asks and whenever.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Literal

from server.engines.port import Spec

Kind = Literal["checkpoint", "vae", "lora", "controlnet", "ip_adapter"]
_ORDER: Mapping[Kind, int] = {"checkpoint": 0, "vae": 1, "lora": 2, "controlnet": 3, "ip_adapter": 4}
_DIGITS = 16  # of the name, hexadecimal: 64 bits


@dataclass(frozen=True)
class Part:
    """One file of weights, by its content."""

    kind: Kind
    sha256: str
    components: frozenset[
        str
    ]  # of an engine that it changes or brings: "unet", "text_encoder", "vae", "controlnet", ...
    weight: float = 1.0  # of a LoRA; others have none


@dataclass(frozen=True)
class Variant:
    """A network with the graph of an engine of the repository, and parts put over its weights in this order."""

    graph: Spec
    parts: tuple[Part, ...]  # at least one

    @cached_property
    def spec(self) -> Spec:
        """The same ports under a name of its own."""
        made_of = [self.graph.name, [(part.kind, part.sha256, part.weight) for part in self.parts]]
        digest = sha256(json.dumps(made_of).encode()).hexdigest()[:_DIGITS]
        return replace(self.graph, name=f"{self.graph.name}--{digest}")


# Whose weights a network of the repository has, by the end of its name.
COMPONENTS: Mapping[str, str] = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "unet": "unet",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}
# The same of the graphs without weights of their own.
_OF_TEMPLATES: Mapping[str, frozenset[str]] = {
    "unet_control": frozenset({"unet", "controlnet"}),
    "unet_ip": frozenset({"unet", "ip_adapter"}),
    "ip_projection": frozenset({"ip_adapter"}),
    "ip_projection_plus": frozenset({"ip_adapter"}),
}
_CHANGING = {**{name: frozenset({component}) for name, component in COMPONENTS.items()}, **_OF_TEMPLATES}


def components(engine: str, specs: Iterable[Spec]) -> frozenset[str]:
    """Whose weights some of an engine's networks have together."""
    return frozenset().union(*(_CHANGING.get(spec.name.removeprefix(f"{engine}_"), ()) for spec in specs))


def variants(engine: str, specs: Iterable[Spec], parts: Iterable[Part]) -> Mapping[str, Variant]:
    """Of an engine's networks, those that some parts change, by the name of their graph.

    LoRAs add up in the order of their content, so that a wish has one name however it is written.
    """
    ordered = sorted(parts, key=lambda part: (_ORDER[part.kind], part.sha256))
    found = {}
    for spec in specs:
        components = _CHANGING.get(spec.name.removeprefix(f"{engine}_"), frozenset())
        its_own = tuple(part for part in ordered if part.components & components)
        if its_own:
            found[spec.name] = Variant(spec, its_own)
    return found
