"""Stable Diffusion 1.5: one CLIP text encoder, an epsilon- or v-predicting UNet, an 8x autoencoder.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), and the published
checkpoint's layout in diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from server.engines.port import Array, Port, Spec
from server.families.base import Conditioning, Family, Run, Size
from server.families.card import Card

if TYPE_CHECKING:
    from server.catalog import Engine
    from server.plan import Plan

TOKENS = 77  # of CLIP: one chunk, start and end tokens included
MAX_ROWS = 16  # of one denoising call: eight guidance pairs


def engines(card: Card) -> tuple[Spec, Spec, Spec]:
    """Text encoder, UNet and VAE decoder of a checkpoint."""
    latent = ("rows", card.latent_channels, "height", "width")  # in latent pixels
    return (
        Spec(
            name=f"{card.name}_text_encoder",
            inputs=(Port("input_ids", "int64", ("rows", TOKENS)),),
            outputs=(
                Port("hidden_states", "float32", ("rows", TOKENS, card.text_width)),
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
        Spec(
            name=f"{card.name}_vae_decoder",
            inputs=(Port("latents", "float32", latent),),  # as denoised: the engine undoes the scaling factor
            outputs=(Port("pixels", "uint8", ("rows", "picture_height", "picture_width", 3)),),  # RGB
            max_rows=1,  # a 1536x1024 decode is memory enough for one call
        ),
    )


async def condition(plan: Plan, engine: Engine, run: Run) -> Conditioning:
    """Text states of the negative and the positive prompt; the negative one only where guidance uses it."""
    text_encoder, unet, _ = engines(engine.card)
    texts = (plan.negative_prompt_ids, plan.prompt_ids) if plan.guided else (plan.prompt_ids,)
    input_ids = np.array(texts, np.int64)  # rows 77
    states = (await run(text_encoder, {"input_ids": input_ids}))["hidden_states"]  # rows 77 width
    return Conditioning(unet, {"encoder_hidden_states": states})


async def decode(latents: Array, engine: Engine, run: Run) -> Array:
    """Latents (c h w, float32) to pixels (height width 3, uint8)."""
    _, _, vae_decoder = engines(engine.card)
    pixels: Array = (await run(vae_decoder, {"latents": latents[None]}))["pixels"][0]
    return pixels


def _sizes(text: str) -> tuple[Size, ...]:
    return tuple(Size(*map(int, pair.split("x"))) for pair in text.split())


FAMILY = Family(
    name="sd15",
    sizes=_sizes(
        "512x512 384x704 448x576 512x704 512x768 512x832 576x448 576x768 576x1024 640x512 640x640 640x768 704x384 "
        "704x1216 768x512 768x576 768x1024 832x512 896x896 1024x576 1024x768 1024x1024 1024x1536 1216x704 1536x1024"
    ),
    default_size=Size(512, 512),
    refuses=frozenset(
        {
            "prompt_2",
            "negative_prompt_2",
            "high_noise_frac",
            "use_refiner",
            "style_preset",
            "transfer_images",
        }
    ),
    engines=engines,
    condition=condition,
    decode=decode,
)
