"""Stable Diffusion 1.5: one CLIP text encoder, an epsilon- or v-predicting UNet, an 8x autoencoder.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), and the published
checkpoint's layout in diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from server.engines.port import Port, Spec
from server.families.base import Family, Run, Size, Stage, Text
from server.families.card import Card
from server.families.parts import CLIP_TOKENS, MAX_ROWS, decode, sizes, vae_decoder
from server.levels import Scheduler
from server.samplers import SAMPLERS

if TYPE_CHECKING:
    from server.plan import Plan


@dataclass(frozen=True)
class Sd15Card(Card):
    """A checkpoint of Stable Diffusion 1.5's shape."""

    scheduler: Scheduler
    text_width: int  # channels of the text states


def engines(card: Sd15Card) -> tuple[Spec, Spec, Spec]:
    """Text encoder, UNet and VAE decoder of a checkpoint."""
    latent = ("rows", card.latent_channels, "height", "width")  # in latent pixels
    return (
        Spec(
            name=f"{card.name}_text_encoder",
            inputs=(Port("input_ids", "int64", ("rows", CLIP_TOKENS)),),
            outputs=(
                Port("hidden_states", "float32", ("rows", CLIP_TOKENS, card.text_width)),
            ),  # after the final layer norm
            max_rows=MAX_ROWS,
        ),
        Spec(
            name=f"{card.name}_unet",
            inputs=(
                Port("sample", "float32", latent),  # alpha * clean + sigma * noise, about unit variance
                Port("timestep", "float32", ("rows",)),  # 0..999, fractions allowed
                Port("encoder_hidden_states", "float32", ("rows", "tokens", card.text_width)),
            ),
            outputs=(Port("prediction", "float32", latent),),
            max_rows=MAX_ROWS,
        ),
        vae_decoder(card),
    )


def texts(card: Sd15Card) -> tuple[Text, ...]:
    """One encoder, one prompt."""
    text_encoder, _, _ = engines(card)
    return (Text(text_encoder.name, "prompt"),)


async def condition(plan: Plan, card: Sd15Card, run: Run) -> tuple[Stage, ...]:
    """Text states of the negative and the positive prompt; the negative one only where guidance uses it."""
    text_encoder, unet, _ = engines(card)
    (text,) = texts(card)
    input_ids = np.array(plan.token_ids(text), np.int64)  # rows 77
    states = (await run(text_encoder, {"input_ids": input_ids}))["hidden_states"]  # rows 77 width
    return (Stage(unet, {"encoder_hidden_states": states}, until=1.0),)


FAMILY = Family(
    name="sd15",
    card=Sd15Card,
    sizes=sizes(
        "512x512 384x704 448x576 512x704 512x768 512x832 576x448 576x768 576x1024 640x512 640x640 640x768 704x384 "
        "704x1216 768x512 768x576 768x1024 832x512 896x896 1024x576 1024x768 1024x1024 1024x1536 1216x704 1536x1024"
    ),
    default_size=Size(512, 512),
    refuses=lambda card: frozenset(
        {
            "prompt_2",
            "negative_prompt_2",
            "high_noise_frac",
            "use_refiner",
            "style_preset",
            "transfer_images",
        }
    ),
    samplers=SAMPLERS,
    engines=engines,
    used=lambda plan, card: engines(card),
    texts=texts,
    condition=condition,
    decode=decode,
)
