"""A card: one checkpoint of a family, as data. The exporter writes it, the gateway reads it; neither knows the other.

A model repository holds `<name>.json` (this card) beside the folders of its engines.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scheduler:
    """The noise schedule the checkpoint was trained with, in diffusers' own terms."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str  # "linear" or "scaled_linear"
    prediction_type: str  # "epsilon" or "v_prediction"
    steps_offset: int
    set_alpha_to_one: bool
    timestep_spacing: str | None = None  # None: the config names none and each sampler's own default holds


@dataclass(frozen=True)
class FlowScheduler:
    """The schedule of a flow-matching checkpoint, in diffusers' own terms."""

    num_train_timesteps: int
    shift: float  # more than 1: more of the steps at high noise


@dataclass(frozen=True)
class Card:
    """Everything about a checkpoint that its family's code does not fix."""

    name: str  # the engine's name in a request, e.g. "sd15"
    family: str  # the file in server/families that knows its shape
    title: str  # one line for people
    source: str  # where the weights came from: a hub id with its revision, or a folder's name
    text_width: int  # channels of the text states
    latent_channels: int
    pixels_per_latent: int  # 8 for SD 1.5: a 512x512 picture has 64x64 latents
    scheduler: Scheduler

    @staticmethod
    def read(path: Path) -> "Card":
        """Raises `ValueError` naming the file and the field when it is not a card."""
        try:
            fields = json.loads(path.read_text())
            return Card(**{**fields, "scheduler": Scheduler(**fields["scheduler"])})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a card of this version: {error}; export the checkpoint again") from error
