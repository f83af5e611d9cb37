"""Stable Diffusion 1.5: one CLIP text encoder, an epsilon- or v-predicting UNet, an 8x autoencoder.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), and the published
checkpoint's layout in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.adapters.ip_adapter import Reach
from server.engines.port import Port, Spec
from server.families.adapted import AdaptedCard, image_encoders, templates
from server.families.base import Family, Run, Size, Stage, Text, both
from server.families.guides import Guided, with_texts
from server.families.parts import (
    CLIP_TOKENS,
    MAX_ROWS,
    MOST_CHUNKS,
    MOST_SKIPPED,
    decode,
    encode,
    executions,
    shortened,
    sizes,
    vae_decoder,
    vae_encoder,
)
from server.families.texts import left_out, text_states
from server.levels import Scheduler
from server.samplers import SAMPLERS

if TYPE_CHECKING:
    from server.plan import Plan


# What the methods of IP-Adapters drive.
REACH: Reach = {"full": ("",), "style": ("up_blocks.1.",), "composition": ("down_blocks.2.", "mid_block.")}


@dataclass(frozen=True)
class Sd15Card(AdaptedCard):
    """A checkpoint of Stable Diffusion 1.5's shape."""

    scheduler: Scheduler
    text_width: int  # channels of the text states
    text_layers: int  # of the text encoder


def text_encoder(card: Sd15Card) -> Spec:
    """CLIP-L as published."""
    return Spec(
        name=f"{card.name}_text_encoder",
        inputs=(
            Port("input_ids", "int64", ("rows", CLIP_TOKENS)),
            Port("skip", "int64", ("rows",)),  # layers left out at the end; 0: none
            Port("vectors", "float32", ("rows", "vectors", card.text_width)),  # an id -1-i reads vector i of its row
        ),
        outputs=(
            Port("hidden_states", "float32", ("rows", CLIP_TOKENS, card.text_width)),
        ),  # after the final layer norm
        max_rows=MAX_ROWS,
    )


def unet(card: Sd15Card) -> Spec:
    """The denoiser."""
    return Spec(
        name=f"{card.name}_unet",
        inputs=(
            # alpha * clean + sigma * noise, about unit variance
            Port("sample", "float32", ("rows", card.sample_channels, "height", "width")),  # in latent pixels
            Port("timestep", "float32", ("rows",)),  # 0..999, fractions allowed
            Port("encoder_hidden_states", "float32", ("rows", "tokens", card.text_width)),
        ),
        outputs=(Port("prediction", "float32", ("rows", card.latent_channels, "height", "width")),),
        max_rows=MAX_ROWS,
    )


def engines(card: Sd15Card) -> tuple[Spec, ...]:
    """All of a checkpoint."""
    return (text_encoder(card), *image_encoders(card), vae_encoder(card), unet(card), vae_decoder(card))


def texts(card: Sd15Card) -> tuple[Text, ...]:
    """One encoder, one prompt."""
    return (Text(text_encoder(card).name, "prompt", MOST_CHUNKS),)


def guided(card: Sd15Card) -> Guided:
    """The UNet with ControlNets and IP-Adapters."""
    return Guided(card, unet(card), card.text_width, REACH)


async def condition(plan: Plan, card: Sd15Card, run: Run) -> tuple[Stage, ...]:
    """Text states of the negative and the positive prompt; the negative one only where guidance uses it."""
    (text,) = texts(card)
    prompts = plan.rows(text)
    encoded, networks = await both(
        text_states(text_encoder(card), prompts, left_out(plan, prompts), run, plan.vectors),
        guided(card).networks(plan, plan.evaluations, run),
    )
    states = {"encoder_hidden_states": encoded["hidden_states"]}
    return (Stage(with_texts(networks, ((states, plan.evaluations),)), plan.walked, told=card.inpainting),)


def used(plan: Plan, card: Sd15Card) -> Mapping[str, int]:
    """Executions of each network."""
    unets = guided(card)
    others = dict.fromkeys((text_encoder(card), *unets.lookers(plan, plan.evaluations)), 1)
    return executions(plan, card, others, dict(unets.turns(plan, plan.evaluations)))


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
    templates=lambda card: templates(card, unet(card), card.text_width),
    executions=used,
    most_skipped=lambda card: min(card.text_layers - 1, MOST_SKIPPED),
    first_step=shortened,
    texts=texts,
    condition=condition,
    encode=encode,
    decode=decode,
)
