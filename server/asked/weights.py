"""Fields that ask for other weights and new words: checkpoints, autoencoders, LoRAs, textual inversions."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from server.adapters.tokens import Inversion, inversion
from server.adapters.weights import Kind, Part
from server.asked.reading import Reading, entries, part_of, wrong_trigger
from server.assets.asset import AssetType
from server.builder.reading import BadFile, Tensors
from server.violations import quoted

MAX_LORAS = 16
MAX_INVERSIONS = 16
MAX_VECTORS = 1024  # of a request's textual inversions together, which engines are exported for


def whole_networks(reading: Reading, name: str, kind: AssetType, part: Kind) -> Iterator[Part]:
    """A checkpoint, an autoencoder."""
    if reading.wants(name) and (asset := reading.asset(name, getattr(reading.request, name), kind)) is not None:
        yield part_of(asset, part)


def loras(reading: Reading, others: Iterable[Part]) -> Iterator[Part]:
    """Equal ones add up: an asset may be asked for by its name and by its id."""
    weights: defaultdict[str, float] = defaultdict(float)
    assets: dict[str, Part] = {}
    for where, name, weight in entries(reading, "loras", reading.request.loras, MAX_LORAS):
        if not math.isfinite(weight):
            reading.wrong(where, f"{weight} is not a finite number")
        elif (asset := reading.asset(where, name, AssetType.LORA)) is not None:
            assets[asset.sha256] = part_of(asset, "lora")
            weights[asset.sha256] += weight
            if not math.isfinite(weights[asset.sha256]):
                reading.wrong(where, f"{quoted(name)} stands in loras more than once, too large together", "loras")
    for part in others:
        assets[part.sha256] = part
        weights[part.sha256] += part.weight
    for sha256, part in assets.items():
        if weights[sha256] != 0:
            yield Part(part.kind, sha256, part.components, weights[sha256])


def inversions(reading: Reading) -> Iterator[Inversion]:
    told = list(entries(reading, "textual_inversions", reading.request.textual_inversions, MAX_INVERSIONS))
    triggers = Counter(trigger for _, _, trigger in told)
    vectors = 0
    for where, name, trigger in told:
        if wrong := wrong_trigger(trigger):
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
                made = inversion(trigger, tensors)
                vectors += max(len(rows) for rows in made.vectors.values())
                yield made
    if vectors > MAX_VECTORS:
        reading.wrong("textual_inversions", f"{vectors} vectors together; at most {MAX_VECTORS} are allowed")
