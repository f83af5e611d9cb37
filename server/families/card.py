"""A card: one checkpoint of a family, as data. The exporter writes it, the gateway reads it; neither knows the other.

A model repository holds `<name>.json` (this card) beside the folders of its engines. A family adds its own fields in a
subclass, in its own file; a card's JSON has them beside the common ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from server.levels import FlowScheduler, Scheduler


@dataclass(frozen=True)
class Card:
    """What is said of every checkpoint."""

    name: str  # the engine's name in a request, e.g. "sd15"
    family: str  # the file in server/families that knows its shape
    title: str  # one line for people
    source: str  # where the weights came from: a hub id with its revision, or a folder's name
    latent_channels: int
    pixels_per_latent: int  # 8 for SD 1.5: a 512x512 picture has 64x64 latents
    scheduler: Scheduler | FlowScheduler  # a family says in its subclass which of the two it is
    inpainting: bool  # whether the denoiser is told the mask and the masked picture, as further channels
    safety_checker: bool  # whether the repository holds one

    @property
    def sample_channels(self) -> int:
        """Of what the denoiser reads: latents, and on an inpainting checkpoint mask and masked latents behind them."""
        return 2 * self.latent_channels + 1 if self.inpainting else self.latent_channels


def read_card(path: Path, types: Mapping[str, type[Card]]) -> Card:
    """The card in a file; `types` are those of the families, by name. Raises `ValueError` naming the file and the field
    when it is none."""
    try:
        fields = json.loads(path.read_text())
        family = fields["family"]
        if family in types:
            scheduler, wanted = _scheduler(fields["scheduler"]), get_type_hints(types[family])["scheduler"]
            if not isinstance(scheduler, wanted):
                raise TypeError(f"its scheduler is a {type(scheduler).__name__}, {family} has a {wanted.__name__}")
            return types[family](**{**_with_tuples(fields), "scheduler": scheduler})
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a card of this version: {error}; export the checkpoint again") from error
    raise ValueError(f"{path} names the family {family!r}; this version has {', '.join(sorted(types))}")


def _with_tuples(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """JSON's lists as a card has them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _scheduler(fields: Mapping[str, Any]) -> Scheduler | FlowScheduler:
    return FlowScheduler(**fields) if "shift" in fields else Scheduler(**fields)
