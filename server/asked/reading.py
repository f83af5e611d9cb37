"""One request on its way from fields to adapters: what it may name, what is wrong with it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeVar

from mediagen.v1 import image_pb2 as pb

from server.adapters.weights import Kind, Part
from server.asked.shelf import Shelf
from server.assets.asset import Asset, AssetType
from server.canvas import FromNoise, FromPicture, Inpainting
from server.catalog import Engine
from server.engines.port import Array
from server.families.base import Size
from server.fields import DEFAULTS
from server.images import BadImage, decode
from server.violations import Violation, quoted

MAX_TRIGGER = 100  # characters of a trigger word
_OLD_OWNER = "octoai:"  # before names in old callers' requests: what the service itself offered
_LIKELY = 3  # names told where one is not known
_SUGGESTIONS = 4  # names of a request for which likely ones are looked for
_LONGEST, _COMPARED = 128, 256  # characters of such a name, and others that it is compared with

_CALLED: Mapping[AssetType, str] = {
    AssetType.CHECKPOINT: "checkpoint",
    AssetType.LORA: "LoRA",
    AssetType.TEXTUAL_INVERSION: "textual inversion",
    AssetType.VAE: "VAE",
    AssetType.CONTROLNET: "ControlNet",
    AssetType.IP_ADAPTER: "IP-Adapter",
}


@dataclass
class Reading:
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
        found = self.shelf.find(asked.removeprefix(_OLD_OWNER), kind)
        if found is None:
            self.wrong(name, f"no {_CALLED[kind]} {quoted(asked)}{self._meant(asked, kind)}; ListAssets tells all")
            return None
        card = self.engine.card.name
        if card not in found.facts.engines:
            fits = ", ".join(found.facts.engines) or "no engine of this deployment"
            self.wrong(name, f"{quoted(asked)} fits {fits} and not {card}", "engine")
            return None
        return found

    def _meant(self, asked: str, kind: AssetType) -> str:
        """Names like it, as the end of a sentence. Looking for them takes long where there are many: so not for all."""
        if len(asked) > _LONGEST or len(self.violations) >= _SUGGESTIONS:
            return ""
        names = sorted(self.shelf.names(kind), key=lambda name: name[:1] != asked[:1])[:_COMPARED]
        likely = get_close_matches(asked, names, _LIKELY, 0.4)
        return f"; the nearest are {', '.join(likely)}" if likely else ""

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


def part_of(asset: Asset, kind: Kind, weight: float = 1.0) -> Part:
    return Part(kind, asset.sha256, frozenset(asset.facts.components), weight)


Told = TypeVar("Told")


def entries(reading: Reading, name: str, told: Mapping[str, Told], most: int) -> Iterator[tuple[str, str, Told]]:
    """(where, name, value) of a map with names of assets; none of one that is too long to be looked into."""
    if name in reading.engine.refuses:
        return
    if len(told) > most:
        reading.wrong(name, f"{len(told)} of them; at most {most} are allowed")
        return
    for key, value in sorted(told.items()):
        yield f"{name}[{key[:MAX_TRIGGER]}]", key, value


def wrong_trigger(trigger: str) -> str:
    """What is wrong with a word; empty: nothing."""
    if not trigger.strip():
        return "no trigger word; say which word in the prompt stands for it"
    if len(trigger) > MAX_TRIGGER:
        return f"a trigger word of {len(trigger)} characters; at most {MAX_TRIGGER} are allowed"
    if trigger != trigger.strip() or any(c in trigger for c in "()\\\n\r\t"):
        return f"{quoted(trigger)} is no trigger word: no brackets, backslashes, and no space around it"
    return ""
