"""SDXL's networks: what its cards say and the tensors that each network takes and gives. Knows no plan and no order of
running: that is `sdxl.py`.

Source: Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis" (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from server.engines.port import Port, Spec
from server.families.adapted import AdaptedCard, image_encoders
from server.families.parts import CLIP_TOKENS, MAX_ROWS, vae_decoder, vae_encoder
from server.levels import Scheduler

BASE_TIME_IDS = 6  # original height and width, top and left of the crop, target height and width
REFINER_TIME_IDS = 5  # original height and width, top and left of the crop, aesthetic score


@dataclass(frozen=True)
class SdxlCard(AdaptedCard):
    """A checkpoint of SDXL's shape."""

    scheduler: Scheduler
    text_width: int  # channels of the first encoder's states
    text_2_width: int  # of the second one's
    pooled_width: int  # of the second one's summary of a text
    text_layers: int  # of the encoder with the fewer
    zeros_for_no_negative: bool  # whether the base was trained with zeros for no text (force_zeros_for_empty_prompt)
    refiner: bool  # whether the repository holds one
    transfer_side: int  # pixels of what the encoder of transfer images is shown; 0: there is none
    transfer_lora: str  # that goes with it: SHA-256 of a file among the repository's assets; empty: none


def _text(width: int) -> tuple[Port, ...]:
    return (
        Port("input_ids", "int64", ("rows", CLIP_TOKENS)),
        Port("skip", "int64", ("rows",)),  # layers left out at the end, the last of all not counted; 0: none
        Port("vectors", "float32", ("rows", "vectors", width)),  # an id -1-i reads vector i of its row
    )


def states_width(card: SdxlCard) -> int:
    """Channels of both encoders' states side by side."""
    return card.text_width + card.text_2_width


def text_encoder(card: SdxlCard) -> Spec:
    """The smaller one, CLIP-L as published."""
    return Spec(
        name=f"{card.name}_text_encoder",
        inputs=_text(card.text_width),
        outputs=(Port("hidden_states", "float32", ("rows", CLIP_TOKENS, card.text_width)),),  # before the last layer
        max_rows=MAX_ROWS,
    )


def text_encoder_2(card: SdxlCard) -> Spec:
    """The larger one, CLIP-bigG as published."""
    return Spec(
        name=f"{card.name}_text_encoder_2",
        inputs=_text(card.text_2_width),
        outputs=(
            Port("hidden_states", "float32", ("rows", CLIP_TOKENS, card.text_2_width)),  # before the last layer
            Port("pooled", "float32", ("rows", card.pooled_width)),  # projected, of the end token
        ),
        max_rows=MAX_ROWS,
    )


def unet(card: SdxlCard) -> Spec:
    """The base model."""
    return _denoiser(f"{card.name}_unet", card, card.sample_channels, states_width(card), BASE_TIME_IDS)


def refiner(card: SdxlCard) -> Spec:
    """The second UNet of a card that has one."""
    return _denoiser(f"{card.name}_refiner", card, card.latent_channels, card.text_2_width, REFINER_TIME_IDS)


def _denoiser(name: str, card: SdxlCard, channels: int, text_width: int, time_ids: int) -> Spec:
    return Spec(
        name=name,
        inputs=(
            # alpha * clean + sigma * noise, about unit variance
            Port("sample", "float32", ("rows", channels, "height", "width")),  # in latent pixels
            Port("timestep", "float32", ("rows",)),  # 0..999, fractions allowed
            Port("encoder_hidden_states", "float32", ("rows", "tokens", text_width)),
            Port("text_embeds", "float32", ("rows", card.pooled_width)),
            Port("time_ids", "float32", ("rows", time_ids)),
        ),
        outputs=(Port("prediction", "float32", ("rows", card.latent_channels, "height", "width")),),
        max_rows=MAX_ROWS,
    )


def transfer_encoder(card: SdxlCard) -> Spec:
    """A picture to what a trigger word stands for: PhotoMaker's CLIP tower with its projections."""
    return Spec(
        name=f"{card.name}_transfer_encoder",
        # RGB, normalised by CLIP's mean and deviation
        inputs=(Port("pixel_values", "float32", ("rows", 3, card.transfer_side, card.transfer_side)),),
        outputs=(Port("identity", "float32", ("rows", states_width(card))),),
        max_rows=MAX_ROWS,
    )


def transfer_fusion(card: SdxlCard) -> Spec:
    """The state of a token and one picture's identity to the state that takes its place."""
    width = states_width(card)
    return Spec(
        name=f"{card.name}_transfer_fusion",
        inputs=(Port("text", "float32", ("rows", width)), Port("identity", "float32", ("rows", width))),
        outputs=(Port("fused", "float32", ("rows", width)),),
        max_rows=MAX_ROWS,
    )


def engines(card: SdxlCard) -> tuple[Spec, ...]:
    """All of a checkpoint."""
    denoisers = (unet(card), refiner(card)) if card.refiner else (unet(card),)
    transfer = (transfer_encoder(card), transfer_fusion(card)) if card.transfer_side > 0 else ()
    pictures = (*image_encoders(card), *transfer, vae_encoder(card))
    return (text_encoder(card), text_encoder_2(card), *pictures, *denoisers, vae_decoder(card))
